"""The plugin contract as assertions, for the tests of plugins.

def test_contract(tmp_path):
    check_callback(MyCallback(patience=3), tmp_path)
"""

from gptkit.conformance.callback import check_callback
from gptkit.conformance.codec import check_codec
from gptkit.conformance.dataset import check_dataset, check_split
from gptkit.conformance.drive import LetterCodec, drive, make_state
from gptkit.conformance.format import check_format, make_model
from gptkit.conformance.options import check_options

__all__ = [
    "LetterCodec",
    "check_callback",
    "check_codec",
    "check_dataset",
    "check_format",
    "check_options",
    "check_split",
    "drive",
    "make_model",
    "make_state",
]
