"""What a rank needs before its first step."""

from pathlib import Path

import pytest

from configs.load import UserError
from training.run.setup import check_shared


def test_an_output_that_a_node_does_not_see_is_refused_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder that all nodes share, or s3://"):
        check_shared(str(tmp_path))
