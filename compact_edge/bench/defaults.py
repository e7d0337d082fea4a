"""What `bench` measures if the user does not say: pairs, depths of decoding in tokens, and new tokens."""

REPETITIONS, DEPTHS, N_TOKENS = 10, (128, 512, 1024), 64
