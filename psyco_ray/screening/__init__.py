"""What is looked for in clients' words: signs of a crisis, the language, personal data.

Everything here works on one text at a time, on the CPU, without a network.
"""
