"""Formats in which calibration sets are shared with other tools. One file a format."""

from secateur.registry import Entry, Registry

FORMATS = Registry(
    "format",
    [
        Entry("hf", "secateur.calibration.exchange.hf:HuggingFace", "A folder for datasets.load_from_disk."),
        Entry("parquet", "secateur.calibration.exchange.parquet:Parquet", "One parquet file."),
        Entry("jsonl", "secateur.calibration.exchange.json_lines:JsonLines", "One JSON object a line."),
        Entry("jsonl.gz", "secateur.calibration.exchange.json_lines:PackedJsonLines", "The same, compressed."),
        Entry("text", "secateur.calibration.exchange.text:Text", "Plain text, samples parted by blank lines; no ids."),
        Entry("json", "secateur.calibration.exchange.json_list:JsonList", "A JSON list of objects; read only."),
        Entry("tensors", "secateur.calibration.exchange.tensors:Tensors", "A torch file of tensors; read only."),
    ],
)
