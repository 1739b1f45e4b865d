// What happens to a sum before it is stored: activation(sum + bias + residual) in the accumulator type; the caller
// then rounds once with from_accumulator or pack. NaN propagates through every activation (fmaxf would drop it).
#pragma once
#include "numeric.cuh"

// The codes of gpu_conv/epilogue.py.
enum Activation {
    ACT_NONE,
    ACT_RELU,
    ACT_RELU6,
    ACT_SIGMOID,
    ACT_TANH,
    ACT_SILU,
    ACT_HARD_SIGMOID,  // alpha, beta
    ACT_HARD_SWISH,
    ACT_GELU,
    ACT_ELU,  // alpha
    ACT_SOFTPLUS,
    ACT_CLIP,        // alpha = lower bound, beta = upper bound
    ACT_LEAKY_RELU,  // alpha
};

template <class Acc>
DEVICE Acc at_least(Acc v, Acc lo) {
#if __CUDA_ARCH__ >= 800
    if constexpr (same<Acc, float>) {
        asm("max.NaN.f32 %0, %0, %1;" : "+f"(v) : "f"(lo));
        return v;
    }
#endif
    return v < lo ? lo : v;
}

template <class Acc>
DEVICE Acc at_most(Acc v, Acc hi) {
#if __CUDA_ARCH__ >= 800
    if constexpr (same<Acc, float>) {
        asm("min.NaN.f32 %0, %0, %1;" : "+f"(v) : "f"(hi));
        return v;
    }
#endif
    return v > hi ? hi : v;
}

template <class Acc>
DEVICE Acc clamp(Acc v, Acc lo, Acc hi) {
    return at_most(at_least(v, lo), hi);
}

// 1 / (1 + exp(-v)). The hardware reciprocal is within 1 ulp and costs a fifth of a division; it returns 0 where the
// result is below 2^-126.
DEVICE float logistic(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + expf(-v)));
    return r;
}
DEVICE double logistic(double v) { return 1.0 / (1.0 + exp(-v)); }

DEVICE float exp_minus_1(float v) { return expm1f(v); }
DEVICE double exp_minus_1(double v) { return expm1(v); }
DEVICE float hyperbolic_tangent(float v) { return tanhf(v); }
DEVICE double hyperbolic_tangent(double v) { return tanh(v); }
DEVICE float error_function(float v) { return erff(v); }
DEVICE double error_function(double v) { return erf(v); }
DEVICE float log_1_plus_exp_minus_abs(float v) { return log1pf(expf(-fabsf(v))); }
DEVICE double log_1_plus_exp_minus_abs(double v) { return log1p(exp(-fabs(v))); }

// One activation with its parameters in the accumulator type. The params structs carry them as two doubles.
template <int ACT, class Acc>
struct Epilogue {
    static_assert(!same<Acc, int32> || ACT == ACT_NONE || ACT == ACT_RELU || ACT == ACT_RELU6 || ACT == ACT_CLIP,
                  "only relu, relu6 and clip are closed over integers");
    Acc alpha, beta;

    DEVICE Epilogue(double a, double b) : alpha(Acc(a)), beta(Acc(b)) {}

    DEVICE Acc activate(Acc v) const {
        if constexpr (ACT == ACT_NONE) {
            return v;
        } else if constexpr (ACT == ACT_RELU) {
            return at_least(v, Acc(0));
        } else if constexpr (ACT == ACT_RELU6) {
            return clamp(v, Acc(0), Acc(6));
        } else if constexpr (ACT == ACT_SIGMOID) {
            return logistic(v);
        } else if constexpr (ACT == ACT_TANH) {
            return hyperbolic_tangent(v);
        } else if constexpr (ACT == ACT_SILU) {
            return v * logistic(v);
        } else if constexpr (ACT == ACT_HARD_SIGMOID) {
            return clamp(v * alpha + beta, Acc(0), Acc(1));
        } else if constexpr (ACT == ACT_HARD_SWISH) {
            return v * clamp(v + Acc(3), Acc(0), Acc(6)) * Acc(1.0 / 6.0);
        } else if constexpr (ACT == ACT_GELU) {
            return v * (error_function(v * Acc(0.70710678118654752440)) + Acc(1)) * Acc(0.5);
        } else if constexpr (ACT == ACT_ELU) {
            return v < Acc(0) ? alpha * exp_minus_1(v) : v;
        } else if constexpr (ACT == ACT_SOFTPLUS) {
            return log_1_plus_exp_minus_abs(v) + at_least(v, Acc(0));
        } else if constexpr (ACT == ACT_CLIP) {
            return clamp(v, alpha, beta);
        } else {
            static_assert(ACT == ACT_LEAKY_RELU, "unknown activation code");
            return v < Acc(0) ? alpha * v : v;
        }
    }

    // bias and residual in the accumulator type, zero where absent.
    DEVICE Acc finish(Acc sum, Acc bias, Acc residual) const { return activate(sum + bias + residual); }
};
