"""Random requests, made from the server's own description of its API, against a running server: no 5xx, no
hang, and nothing that the description does not say.

    MAX_OUTPUT_TOKENS=8 MAX_CHOICES=3 scripts/with-server pytest tests/fuzz
"""

import os

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

URL = os.environ["CANDLEPOWER_URL"].rstrip("/")

schema = schemathesis.openapi.from_url(f"{URL}/openapi.json")


@schema.parametrize()
# The same requests in every run.
@settings(
    max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_the_api_is_as_described(case):
    response = case.call(timeout=30)
    # A request may set itself a deadline that nobody can keep.
    is_late = response.status_code == 408
    case.validate_response(response, excluded_checks=[positive_data_acceptance] if is_late else [])


@pytest.fixture(scope="module", autouse=True)
def unharmed():
    yield
    assert requests.get(f"{URL}/health/ready", timeout=30).status_code == 200
    stats = requests.get(f"{URL}/stats", timeout=30).json()
    assert stats["kv_cache"]["used_blocks"] == 0
    assert stats["requests"]["num_failed"] == 0
