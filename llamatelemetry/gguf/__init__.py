"""Know the model before it loads: headers, quantization, and the memory it takes."""
