"""One module per quantization method; `quant/method.py` says what each has."""
