"""How many bits for which layer: each layer's sensitivity, and a search under a budget of size, accuracy or logic cells."""
