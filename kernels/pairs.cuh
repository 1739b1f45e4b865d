// Activations of two sums that are stored as 16-bit floats side by side, from sm_80 on.
#pragma once
#include "epilogue.cuh"

// Two floats as two 16-bit elements in one word, the first in the low half; zero for negative numbers, NaN stays NaN.
template <class T>
DEVICE uint32 from_accumulators_relu(float lo, float hi) {
    uint32 word;
    if constexpr (same<T, float16>) {
        asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
    } else {
        asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
    }
    return word;
}

// The smaller of two pairs, one by one; NaN stays NaN.
template <class T>
DEVICE uint32 smaller_pair(uint32 a, uint32 b) {
    uint32 word;
    if constexpr (same<T, float16>) {
        asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(word) : "r"(a), "r"(b));
    } else {
        asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(word) : "r"(a), "r"(b));
    }
    return word;
}

// Two sums, activated and rounded, in one word. Rounding keeps 0, 6 and the order of numbers: the clamps of relu and
// relu6 after it give the same, with 2 instructions instead of 5.
template <class T, int ACT>
DEVICE uint32 activate_pair(const Epilogue<ACT, float>& act, float lo, float hi) {
    if constexpr (ACT == ACT_RELU) {
        return from_accumulators_relu<T>(lo, hi);
    } else if constexpr (ACT == ACT_RELU6) {
        return smaller_pair<T>(from_accumulators_relu<T>(lo, hi), from_accumulators<T>(6.0f, 6.0f));
    } else {
        return from_accumulators<T>(act.activate(lo), act.activate(hi));
    }
}
