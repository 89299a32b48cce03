"""The API as the `openai` package uses it, against a running server with a real model.

    CANDLEPOWER_URL=http://127.0.0.1:8000 pytest tests/openai
"""

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


def test_the_served_model_is_listed_and_retrieved(client, model):
    assert client.models.retrieve(model).id == model


def test_completion_is_greedy_at_temperature_0_and_counts_its_tokens(client, model):
    ask = dict(model=model, prompt="The capital of France is", max_tokens=8, temperature=0)
    first = client.completions.create(**ask)
    again = client.completions.create(**ask)
    assert "Paris" in first.choices[0].text
    assert first.choices[0].text == again.choices[0].text
    assert first.choices[0].finish_reason == "length"
    assert first.object == "text_completion"
    assert first.usage.completion_tokens == 8
    assert first.usage.total_tokens == first.usage.prompt_tokens + 8
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1


def test_n_answers_to_one_prompt_are_drawn_by_one_seed_and_counted_once(client, model):
    ask = dict(model=model, messages=QUESTION, max_completion_tokens=16, temperature=1.5, n=4, seed=3)
    first = client.chat.completions.create(**ask)
    again = client.chat.completions.create(**ask)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    alone = client.chat.completions.create(**{**ask, "n": 1})
    assert alone.choices[0].message.content == texts[0]
    assert first.usage.prompt_tokens == alone.usage.prompt_tokens


def test_logit_bias_bans_and_forces_a_token(client, model):
    ask = dict(model=model, prompt="The capital of France is", max_tokens=1, temperature=0)
    likely = client.completions.create(**ask, extra_body={"return_token_ids": True}).choices[0]
    [token] = likely.model_extra["token_ids"]
    banned = client.completions.create(**ask, logit_bias={str(token): -100})
    assert banned.choices[0].text != likely.text
    forced = client.completions.create(**{**ask, "prompt": "One, two,"}, logit_bias={str(token): 100})
    assert forced.choices[0].text == likely.text


def test_chat_answers_and_stops_by_itself(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_completion_tokens=100, temperature=0
    )
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert "Paris" in choice.message.content
    assert "<|" not in choice.message.content
    assert choice.finish_reason == "stop"
    assert 0 < answer.usage.completion_tokens < 100


def test_a_former_answer_can_be_sent_back_and_its_tokens_are_reused(client, model):
    ask = dict(model=model, max_completion_tokens=30, temperature=0)
    first = client.chat.completions.create(messages=QUESTION, **ask)
    former = first.choices[0].message.model_dump()
    more = [*QUESTION, former, {"role": "user", "content": "And of Italy?"}]
    second = client.chat.completions.create(messages=more, **ask)
    assert second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_chat_streams_the_same_text_with_role_reason_and_usage(client, model):
    ask = dict(model=model, messages=QUESTION, max_completion_tokens=20, temperature=0)
    whole = client.chat.completions.create(**ask)
    chunks = list(
        client.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        )
    )
    *with_choices, last = chunks
    assert with_choices[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content for chunk in with_choices)
    assert text == whole.choices[0].message.content
    assert with_choices[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens == len(with_choices)
    assert all(chunk.usage is None for chunk in with_choices)


def test_completion_streams_the_same_text(client, model):
    ask = dict(model=model, prompt="Once upon a time", max_tokens=16, temperature=0)
    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(**ask, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_several_prompts_and_token_ids(client, model):
    prompts = ["The capital of France is", "One, two, three,"]
    ask = dict(model=model, max_tokens=6, temperature=0)
    together = client.completions.create(prompt=prompts, **ask)
    alone = [client.completions.create(prompt=prompt, **ask) for prompt in prompts]
    texts = [choice.text for choice in sorted(together.choices, key=lambda choice: choice.index)]
    assert texts == [answer.choices[0].text for answer in alone]

    tokens = client.post("/../tokenize", body={"prompt": prompts[0]}, cast_to=object)["tokens"]
    by_ids = client.completions.create(prompt=tokens, **ask)
    assert by_ids.choices[0].text == texts[0]
    assert by_ids.usage.prompt_tokens == len(tokens)


def test_a_seed_repeats_a_sampled_text_and_another_seed_does_not(client, model):
    ask = dict(model=model, prompt="My favourite animals are", max_tokens=24, temperature=1.0)
    text = {
        name: client.completions.create(seed=seed, **ask).choices[0].text
        for name, seed in [("first", 1), ("again", 1), ("other", 2)]
    }
    assert text["first"] == text["again"]
    assert text["first"] != text["other"]


def test_a_stop_string_is_not_in_the_text(client, model):
    ask = dict(model=model, prompt="1, 2, 3, 4,", max_tokens=30, temperature=0)
    whole = client.completions.create(**ask).choices[0].text
    stop = whole[len(whole) // 2 :][:4]
    answer = client.completions.create(stop=[stop], **ask).choices[0]
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"


def test_errors_have_the_packages_types_and_name_the_field(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=model, prompt="a", temperature=3)
    assert error.value.param == "temperature"
    assert error.value.type == "invalid_request_error"

    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=QUESTION, n=0)
    assert error.value.param == "n"

    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=model, prompt="a", max_tokens=10_000_000)
    assert error.value.code == "context_length_exceeded"

    # The model's template teaches no calls.
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=QUESTION, tools=[tool])
    assert error.value.param == "tools"

    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(model="no-such-model", prompt="a")
    assert error.value.code == "model_not_found"


def test_a_stream_may_be_left_early(client, model):
    with client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=500, stream=True
    ) as stream:
        assert next(iter(stream)).choices
    assert client.completions.create(model=model, prompt="a", max_tokens=1).choices
