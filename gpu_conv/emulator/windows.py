"""Where shared and local memory appear in the generic address space; global memory lies below both."""

SHARED_WINDOW = 0x7E << 40
LOCAL_WINDOW = 0x7D << 40
