// Several convolutions of the same input in one launch: the phases of a transposed one (gpu_conv/phases.py).
// Neighbouring blocks are different phases of the same place, so that they find x, and what they share of a line of y,
// in L2.
#pragma once
#include "numeric.cuh"

// In which they differ: where filter, output and residual begin, in elements; low side of the padding; taps. Three
// right-aligned spatial axes each. At most 16: those of stride 4 along two axes.
struct Phases {
    int64 w[16];
    int64 y[16];
    int64 residual[16];
    int32 padding[48];
    int32 filter[48];
    int32 count;
};
static_assert(sizeof(Phases) == 776, "PHASES of families/phased.py has the same layout");

// The last argument of a kernel. params: of the phase with the most taps.
template <class PARAMS>
struct Phased {
    PARAMS params;
    Phases phases;
};
template <class PARAMS, bool PHASED>
using Given = typename Select<PHASED, Phased<PARAMS>, PARAMS>::type;

// What a block computes: of a launch of one convolution, that one.
struct Phase {
    int64 w, y, residual;
    int index, count;
    uint32 block, blocks;  // among the blocks of the phase

    template <class PARAMS>
    DEVICE Phase(const PARAMS&, uint32 all) : w(0), y(0), residual(0), index(0), count(1), block(all) {
        blocks = gridDim.x;
    }

    template <class PARAMS>
    DEVICE Phase(const Phased<PARAMS>& given, uint32 all) {
        const Phases& phases = given.phases;
        count = phases.count, block = all / count, index = all - block * count, blocks = gridDim.x / count;
        w = phases.w[index], y = phases.y[index], residual = phases.residual[index];
    }
};

// The parameters of that convolution; set_geometry(params, padding, filter) knows how a kernel calls the two.
template <class PARAMS>
DEVICE const PARAMS& params_of(const PARAMS& given, const Phase&) {
    return given;
}
template <class PARAMS>
DEVICE PARAMS params_of(const Phased<PARAMS>& given, const Phase& phase) {
    PARAMS params = given.params;
    const int32* const padding = given.phases.padding + 3 * phase.index;
    const int32* const filter = given.phases.filter + 3 * phase.index;
    set_geometry(params, {padding[0], padding[1], padding[2]}, {filter[0], filter[1], filter[2]});
    return params;
}
