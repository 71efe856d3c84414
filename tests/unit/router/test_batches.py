"""How many calls keep a model's batches full, as its configuration says."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from aiflow_router.forwarding.batches import room


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param("", 0, id="a model that does not batch"),
        pytest.param("max_batch_size: 8", 0, id="one whose callers batch"),
        pytest.param("dynamic_batching {}", 0, id="a batcher without batches"),
        pytest.param("max_batch_size: 1 dynamic_batching {}", 0, id="batches of one"),
        pytest.param(
            "max_batch_size: 8 sequence_batching {}", 0, id="sequences, which stay together"
        ),
        pytest.param("max_batch_size: 8 dynamic_batching {}", 16, id="one runs, one gathers"),
        pytest.param(
            "max_batch_size: 8 dynamic_batching {} instance_group { count: 3 }",
            32,
            id="each instance runs one",
        ),
        pytest.param(
            "max_batch_size: 8 dynamic_batching {} instance_group { count: 2 gpus: [0, 1] }",
            40,
            id="so many instances on each GPU",
        ),
        pytest.param(
            "max_batch_size: 8 dynamic_batching {} "
            "instance_group { count: 1 } instance_group { count: 4 passive: true }",
            16,
            id="passive instances run nothing",
        ),
        pytest.param(
            "max_batch_size: 32 dynamic_batching { preferred_batch_size: [4, 8] }",
            16,
            id="a preferred size is not waited beyond",
        ),
    ],
)
def test_room(config: str, expected: int) -> None:
    parsed = text_format.Parse(config, model_config_pb2.ModelConfig())
    assert room(parsed) == expected
