"""The router learns from a real Triton how large a model's batches are."""

import pytest
from integration.router.kit import mesh, until

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]


async def test_the_size_of_a_models_batches_is_learned_from_its_triton(
    triton_address: str,
) -> None:
    endpoint = (
        f"{{backend: triton, address: '{triton_address}', protocol: oip, "
        "models: [detector, cutout]}"
    )
    config = (
        f"discovery: {{static: [{endpoint}]}}\n"
        "routes: [{match: {model: detector}, balance: batch_aware, latency_aim: 1s}]"
    )
    async with mesh(config) as m:
        await until(lambda: m.router.batches.pending() == 0)
        (load,) = m.router.front.table.model("detector").loads
        # triton_repo/detector/config.pbtxt: one batch of 32 runs, another one gathers.
        assert load.rooms == {"detector": 64}
