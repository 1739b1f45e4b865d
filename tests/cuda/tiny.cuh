#pragma once

struct TinyParams {
    long long count;
    float scale;
    int offsets[3];
};

__device__ inline float scaled(float value, const TinyParams& p) { return value * p.scale; }
