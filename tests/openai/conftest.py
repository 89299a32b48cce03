"""What all tests share: a client for the running server, and the model that it serves."""

import os

import openai
import pytest

URL = os.environ["CANDLEPOWER_URL"].rstrip("/")


@pytest.fixture(scope="session")
def client():
    # No retries: each answer is looked at as it comes.
    with openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def model(client):
    [model] = client.models.list().data
    return model.id
