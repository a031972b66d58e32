"""Learning the parameters of quantized models: needs torch (`pip install edgeq[torch]`)."""
