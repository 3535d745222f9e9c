"""The fp32 graph's variants, each compared before it is kept: float16, INT8, uint8 images."""
