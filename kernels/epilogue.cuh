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
    ACT_SOFTSIGN,
    ACT_LINEAR,               // alpha, beta
    ACT_CELU,                 // alpha
    ACT_SELU,                 // alpha, beta = gamma
    ACT_SCALED_TANH,          // alpha, beta
    ACT_PARAMETRIC_SOFTPLUS,  // alpha, beta
    ACT_THRESHOLDED_RELU,     // alpha
    ACT_SHRINK,               // alpha = bias, beta = threshold
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

template <class Acc>
DEVICE Acc softplus(Acc v) {
    return log_1_plus_exp_minus_abs(v) + at_least(v, Acc(0));
}

// What a quantised convolution has of an output channel in the place of a bias: the records of
// gpu_conv/requantize.py.
template <class Y>
struct __align__(16) Requantization {
    static_assert(same<Y, int8> || same<Y, uint8>, "the results have 8 bits");
    static constexpr float kLowest = same<Y, int8> ? -128.0f : 0.0f;
    int32 bias;
    float scale;
    int32 zero_point;  // the same for all channels
    int32 unused;
};

template <class B>
inline constexpr bool requantizes = false;
template <class Y>
inline constexpr bool requantizes<Requantization<Y>> = true;

// What the epilogue takes of an output channel: its bias in the accumulator type, or its Requantization.
template <class B, class Acc>
using ChannelTerm = typename Select<requantizes<B>, B, Acc>::type;

// That of one channel, zero where there is none.
template <class Acc, class B>
DEVICE ChannelTerm<B, Acc> channel_term(const B* bias, int64 channel, bool present) {
    ChannelTerm<B, Acc> term = {};
    if (present) term = to_accumulator<ChannelTerm<B, Acc>>(bias[channel]);
    return term;
}

// saturate(round((sum + bias) * scale) + zero_point), halves to even. Clamped to the reach of 8 bits, a float plus
// 1.5 * 2^23 is rounded to an integer in its low bits: conversions run at an eighth of the rate of additions.
template <class Y>
DEVICE int32 requantize(int32 sum, const Requantization<Y>& r) {
    constexpr float kMagic = 12582912.0f;
    const float scaled = __fmul_rn(__int2float_rn(sum + r.bias), r.scale);
    const float lowest = Requantization<Y>::kLowest - float(r.zero_point);
    const float inside = fminf(fmaxf(scaled, lowest), lowest + 255.0f);
    return __float_as_int(__fadd_rn(inside, kMagic)) - (__float_as_int(kMagic) - r.zero_point);
}

// The bias of a term, plus something that is known per channel.
DEVICE void add_to_bias(int32& term, int32 v) { term += v; }
template <class Y>
DEVICE void add_to_bias(Requantization<Y>& term, int32 v) {
    term.bias += v;
}

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
            return softplus(v);
        } else if constexpr (ACT == ACT_CLIP) {
            return clamp(v, alpha, beta);
        } else if constexpr (ACT == ACT_LEAKY_RELU) {
            return v < Acc(0) ? alpha * v : v;
        } else if constexpr (ACT == ACT_SOFTSIGN) {
            return v / (Acc(1) + (v < Acc(0) ? -v : v));
        } else if constexpr (ACT == ACT_LINEAR) {
            return alpha * v + beta;
        } else if constexpr (ACT == ACT_CELU) {
            return v < Acc(0) ? alpha * exp_minus_1(v / alpha) : v;
        } else if constexpr (ACT == ACT_SELU) {
            return beta * (v < Acc(0) ? alpha * exp_minus_1(v) : v);
        } else if constexpr (ACT == ACT_SCALED_TANH) {
            return alpha * hyperbolic_tangent(beta * v);
        } else if constexpr (ACT == ACT_PARAMETRIC_SOFTPLUS) {
            return alpha * softplus(beta * v);
        } else if constexpr (ACT == ACT_THRESHOLDED_RELU) {
            return v <= alpha ? Acc(0) : v;
        } else {
            static_assert(ACT == ACT_SHRINK, "unknown activation code");
            return v < -beta ? v + alpha : v <= beta ? Acc(0) : v - alpha;
        }
    }

    // bias and residual in the accumulator type, zero where absent.
    DEVICE Acc finish(Acc sum, Acc bias, Acc residual) const { return activate(sum + bias + residual); }
    template <class Y>
    DEVICE Acc finish(Acc sum, const Requantization<Y>& term, Acc) const {
        static_assert(ACT == ACT_NONE && same<Acc, int32>, "what is requantised is stored");
        return requantize(sum, term);
    }
};
