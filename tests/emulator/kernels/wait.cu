// A double-buffered copy pipeline; the bug lets one group too many stay in flight.
template <bool BUG>
__global__ void wait(const float* x, float* y, int steps) {
    __shared__ float tile[2][128];
    const int t = threadIdx.x;
    const unsigned target = (unsigned)__cvta_generic_to_shared(&tile[0][t]);
    auto copy = [&](int step) {
        if (step < steps)
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(target + (step & 1) * 512),
                         "l"(x + step * 128 + t));
        asm volatile("cp.async.commit_group;");
    };
    copy(0);
    for (int step = 0; step < steps; ++step) {
        copy(step + 1);
        asm volatile("cp.async.wait_group %0;" ::"n"(BUG ? 2 : 1));
        __syncthreads();
        y[step * 128 + t] = tile[step & 1][t ^ 1];  // FOUND: copy not waited for
        __syncthreads();
    }
}
