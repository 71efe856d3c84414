"""For tests of code that calls AIFlow: a real server, a true protocol, failures to order.

with serving({"double": lambda inputs: {"y": inputs["x"] * 2}}) as server:
server.fail_next(Failure(error=NoEndpointError("gone", retry_after_s=0.01)))
with Client(server.address) as client:
assert client.infer("double", {"x": np.ones((1, 2))})["y"].tolist() == [[2, 2]]
"""

from aiflow_sdk.testing.server import Failure, ReceivedCall, Server, serving

__all__ = ["Failure", "ReceivedCall", "Server", "serving"]
