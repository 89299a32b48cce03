"""Log-probabilities as the `openai` package and evaluation harnesses read them."""

import math

import pytest

PROMPT = "The three largest cities of France are"


def score(client, model, prompt, top=1):
    """The choice of a prompt that is scored and not continued."""
    answer = client.completions.create(
        model=model, prompt=prompt, max_tokens=0, echo=True, logprobs=top
    )
    assert answer.usage.completion_tokens == 0
    return answer.choices[0]


@pytest.fixture(scope="module")
def greedy(client, model):
    """A greedy continuation with its log-probabilities and token ids."""
    answer = client.completions.create(
        model=model,
        prompt=PROMPT,
        max_tokens=32,
        temperature=0,
        logprobs=2,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    return answer.choices[0]


def test_scoring_a_greedy_text_gives_what_its_generation_reported(client, model, greedy):
    prompt_ids, output_ids = greedy.prompt_token_ids, greedy.token_ids
    assert len(output_ids) == 32
    scored = score(client, model, prompt_ids + output_ids, top=2).logprobs
    assert len(scored.tokens) == len(prompt_ids) + len(output_ids)
    of_output = slice(len(prompt_ids), None)
    assert scored.tokens[of_output] == greedy.logprobs.tokens
    # Not nearly, but exactly: what a token's neighbours in a step are does not change its numbers.
    assert scored.token_logprobs[of_output] == greedy.logprobs.token_logprobs
    assert scored.top_logprobs[of_output] == greedy.logprobs.top_logprobs
    assert scored.text_offset[of_output] == [
        offset + len(PROMPT) for offset in greedy.logprobs.text_offset
    ]


def test_greedy_tokens_are_the_most_likely_and_probabilities_are_below_1(greedy):
    for logprob, top in zip(greedy.logprobs.token_logprobs, greedy.logprobs.top_logprobs):
        assert logprob == max(top.values()) <= 0
        assert len(top) == 2
        assert sum(map(math.exp, top.values())) <= 1 + 1e-6


def test_a_cached_prompt_has_the_same_scores(client, model):
    prompt = "Rivers carry water, sand and stories down to the sea. " * 8
    cold = score(client, model, prompt, top=5)
    ask = dict(model=model, prompt=prompt, max_tokens=1)
    cached = client.completions.create(**ask).usage.prompt_tokens_details.cached_tokens
    assert cached == len(cold.logprobs.tokens) - 1
    assert score(client, model, prompt, top=5) == cold


@pytest.mark.parametrize("text", [PROMPT, "def f(x):\n\treturn x ** 2\n", "Grüße, 世界! 🕯️ naïve"])
def test_tokens_and_offsets_tile_the_echoed_text(client, model, text):
    choice = score(client, model, text)
    assert choice.text == text
    assert choice.finish_reason == "length"
    logprobs = choice.logprobs
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(logprob <= 0 for logprob in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    for token, offset in zip(logprobs.tokens, logprobs.text_offset):
        assert token.startswith("bytes:") or text.startswith(token, offset)


def test_a_harness_finds_the_likelier_of_two_continuations(client, model):
    """The request of lm-evaluation-harness' `local-completions`, and what it reads of the answer."""

    def encode(text):
        return client.post("/../tokenize", body={"prompt": text}, cast_to=object)["tokens"]

    context = encode("The capital of France is")
    continuations = [" Paris", " a banana"]
    answer = client.completions.create(
        model=model,
        prompt=[context + encode(text) for text in continuations],
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    loglikelihoods, is_greedy = [], []
    for choice in sorted(answer.choices, key=lambda choice: choice.index):
        logprobs = choice.logprobs.token_logprobs[len(context) : -1]
        tops = choice.logprobs.top_logprobs[len(context) : -1]
        loglikelihoods.append(sum(logprobs))
        is_greedy.append(all(own == max(top.values()) for own, top in zip(logprobs, tops)))
    assert loglikelihoods[0] > loglikelihoods[1] + 3
    assert is_greedy[1] is False


def test_chat_tells_each_token_with_bytes_and_alternatives(client, model):
    ask = dict(
        model=model,
        messages=[{"role": "user", "content": "Repeat exactly: naïve 🕯️ 世界"}],
        max_completion_tokens=24,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    answer = client.chat.completions.create(**ask)
    choice = answer.choices[0]
    content = choice.logprobs.content
    assert len(content) == answer.usage.completion_tokens
    text_tokens = content[:-1] if choice.finish_reason == "stop" else content
    joined = b"".join(bytes(token.bytes) for token in text_tokens)
    assert joined.decode(errors="replace") == choice.message.content
    for token in content:
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert len(token.top_logprobs) == 3

    chunks = client.chat.completions.create(**ask, stream=True)
    streamed = [token for chunk in chunks for token in chunk.choices[0].logprobs.content]
    assert [(token.token, token.bytes) for token in streamed] == [
        (token.token, token.bytes) for token in content
    ]


def test_a_completion_streams_the_prompt_first_and_then_the_same_tokens(client, model):
    ask = dict(model=model, prompt=PROMPT, max_tokens=8, temperature=0, echo=True, logprobs=1)
    whole = client.completions.create(**ask).choices[0]
    first, *rest = [chunk.choices[0] for chunk in client.completions.create(**ask, stream=True)]
    assert first.text == PROMPT
    assert PROMPT + "".join(choice.text for choice in rest) == whole.text
    for field in ["tokens", "text_offset"]:
        pieces = [getattr(choice.logprobs, field) for choice in [first, *rest]]
        assert sum(pieces, []) == getattr(whole.logprobs, field)
