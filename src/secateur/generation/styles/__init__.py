"""Styles: how the model is made to write. One file a style."""

from secateur.registry import Entry, Registry

_HERE = "secateur.generation.styles"

STYLES = Registry(
    "style",
    [
        Entry("prefix", f"{_HERE}.prefix:Prefix", "Continue the first few tokens of any text (the paper's)."),
        Entry(
            "self-calibration",
            f"{_HERE}.self_calibration:SelfCalibration",
            "From the begin token alone, hot at first, cooling.",
        ),
        Entry("random-start", f"{_HERE}.random_start:RandomStart", "A random token, a few greedy ones, then sampling."),
        Entry("chat", f"{_HERE}.chat:Chat", "Both sides of a conversation: what a user asks, and the answer."),
        Entry("traces", f"{_HERE}.traces:Traces", "Solve whole task prompts, chain of thought and answer."),
    ],
)
