"""Models in one process: loading, encoding, packing, and the bits of their weights.

Holds everything that a learner worker, a scorer and an evaluation share about a language or reward model: loading and
saving, packed rows and their attention, the chunked LM head, the reward head, the wire format and checksum of weights.
No Ray actors, no training loop, no vLLM.
"""
