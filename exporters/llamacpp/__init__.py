"""llama.cpp: its engine, its quantizer and types, and importance matrices."""
