"""The exercise of lesson 00, which shows how exercises work."""

from qtutor.exercises.exercise import Exercises

exercises = Exercises("00_start_here")

bytes_of_weights = exercises.value(
    "bytes_of_weights",
    1_000_000,
    hints=[
        "INT8 spends 8 bits on each weight. How many bits are in a byte?",
        "One byte each, and there are a million.",
    ],
    mistakes={
        8_000_000: "That is the number of bits. There are 8 bits in a byte.",
        4_000_000: "That is FP32, which spends 4 bytes on each weight.",
        250_000: "You divided by 4, but INT8 takes one byte for each weight, not a quarter of one.",
    },
    because="8 bits are one byte, so a million weights take a million bytes; as FP32 they took four million.",
)
