"""Write configs/schema.json, by which editors complete and check recipes."""

import json
import sys
from pathlib import Path
from typing import Any

from configs.files import write_text
from configs.schema import json_schema
from finetune.config import FinetuneConfig
from mlm.config import PretrainConfig
from mlm.sweeps.config import SweepConfig

PATH = Path(__file__).parents[1] / "configs" / "schema.json"


def schema() -> dict[str, Any]:
    """Return the schema of the recipes of pretraining, of fine-tuning and of sweeps."""
    return json_schema([PretrainConfig, FinetuneConfig, SweepConfig])


def text() -> str:
    """Return the content of configs/schema.json."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text(PATH, text())
    print(f"written: {PATH}", file=sys.stderr)
