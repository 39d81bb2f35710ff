"""An S3 that ends with the tests: moto's server on a free port of the loopback interface."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def served(bucket: str = "studies") -> Iterator[dict[str, str]]:
    """The environment variables by which clients find a server that has one empty bucket."""
    threaded: Any = pytest.importorskip("moto.server").ThreadedMotoServer
    boto3: Any = pytest.importorskip("boto3")
    server = threaded(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        said = ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        client = boto3.client(
            "s3",
            endpoint_url=said["AWS_ENDPOINT_URL"],
            aws_access_key_id="nobody",
            aws_secret_access_key="nothing",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=bucket)
        yield said
    finally:
        server.stop()
