"""Fine-tuning of a compressed model: the data, the loss, the loop. What is trained is the quantizers' and layers' business
(compress/quantize/qat.py); the loop runs on Hugging Face Accelerate, so `accelerate launch` takes it to many processes."""
