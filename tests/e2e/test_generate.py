"""generate, as scripts use it: the forms of docs/commands.md, on the demo model."""

import json
import re

import pytest
from conftest import MODEL, generate, model_with_nan_weights, quire


def test_generate_prints_the_documented_object():
    [answer] = generate("--prompt", "Once upon a time", "--max-tokens", 8, "--temperature", 0, "--logprobs", 2)
    assert list(answer)[:4] == ["prompt_token_ids", "outputs", "usage", "kv"]
    [output] = answer["outputs"]
    assert output["index"] == 0 and output["finish_reason"] == "length" and output["text"]
    assert len(output["token_ids"]) == 8 == len(output["logprobs"]) == answer["usage"]["completion_tokens"]
    for token_id, entry in zip(output["token_ids"], output["logprobs"]):
        assert entry["token_id"] == token_id == entry["top"][0]["token_id"], "greedy takes the likeliest"
        assert entry["logprob"] == entry["top"][0]["logprob"] >= entry["top"][1]["logprob"]
    assert answer["usage"]["prompt_tokens"] == len(answer["prompt_token_ids"])
    assert set(answer["kv"]) == {"blocks_peak", "blocks_shared_peak", "copies_on_write", "waste_percent", "prefill_mode"}


def test_generate_gives_the_golden_tokens(recall_goldens, tmp_path):
    lines = [{"prompt_ids": case["prompt_ids"], "max_tokens": 64, "temperature": 0, "ignore_eos": True} for case in recall_goldens["cases"]]
    file = tmp_path / "cases.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    answers = generate("--input", file)
    for case, answer in zip(recall_goldens["cases"], answers, strict=True):
        assert answer["outputs"][0]["token_ids"] == case["greedy_ids"], case["prompt"]


def test_text_and_ids_are_the_same_prompt():
    [by_text] = generate("--prompt", "The dog", "--max-tokens", 4, "--temperature", 0)
    ids = ",".join(map(str, by_text["prompt_token_ids"]))
    [by_ids] = generate("--prompt-ids", ids, "--max-tokens", 4, "--temperature", 0)
    assert by_ids["outputs"] == by_text["outputs"]


def test_four_samples_share_their_prompt():
    prompt_ids = ",".join(str(1 + i % 500) for i in range(512))
    [answer] = generate("--prompt-ids", prompt_ids, "--n", 4, "--max-tokens", 8, "--seed", 5, "--ignore-eos")
    assert [o["index"] for o in answer["outputs"]] == [0, 1, 2, 3]
    assert len({tuple(o["token_ids"]) for o in answer["outputs"]}) > 1, "samples differ"
    assert answer["kv"]["blocks_shared_peak"] >= 32, "512 prompt tokens are 32 whole blocks of 16"
    assert answer["kv"]["blocks_peak"] <= 32 + 4 * 2


def test_forced_tokens_come_all_whatever_ends_a_text():
    [answer] = generate("--prompt-ids", "1,2", "--forced-token-ids", "0,5,0,6", "--stop-token-ids", "5", "--max-tokens", 4)
    assert answer["outputs"][0]["token_ids"] == [0, 5, 0, 6], "0 is the model's end"
    [answer] = generate("--prompt-ids", "1,2", "--forced-token-ids", "6,0", "--max-tokens", 4)
    assert answer["outputs"][0]["token_ids"] == [6, 0] and answer["outputs"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("flags", [(), ("--temperature", 0), ("--beam-width", 2), ("--forced-token-ids", "5"), ("--prompt-logprobs", 0)])
def test_a_model_that_gives_nan_fails_the_request(tmp_path, flags):
    model = model_with_nan_weights(tmp_path / "nan")
    done = quire("generate", "--model", model, "--prompt-ids", "1,2", "--max-tokens", 3, "--output", "json", *flags)
    assert done.returncode == 1 and "no finite logit for" in done.stderr, (done.stdout, done.stderr)
    assert '"token_ids":[0' not in done.stdout


def test_max_tokens_that_nobody_asked_for_fits_the_context():
    ids = ",".join(["5"] * 60)
    [answer] = generate("--prompt-ids", ids, "--max-context-tokens", 64, "--ignore-eos")
    assert len(answer["outputs"][0]["token_ids"]) == 4
    done = quire("generate", "--model", MODEL, "--prompt-ids", ids, "--max-context-tokens", 64, "--max-tokens", 16)
    assert done.returncode == 1 and "max_tokens may be at most 4" in done.stderr


def test_the_same_seed_gives_the_same_tokens():
    runs = [generate("--prompt", "Once", "--max-tokens", 12, "--seed", 7)[0]["outputs"] for _ in range(2)]
    assert runs[0] == runs[1]
    assert generate("--prompt", "Once", "--max-tokens", 12, "--seed", 8)[0]["outputs"] != runs[0]


def test_jsonl_keeps_the_order_and_takes_the_wires_fields(tmp_path):
    lines = [
        {"text": "Once", "sampling": {"max_tokens": 9, "temperature": 0}},
        {"prompt": "The", "max_tokens": 2, "temperature": 0, "stop": ["zzzz"]},
        {"token_ids": [0, 5], "max_tokens": 5, "n": 2, "seed": 1, "ignore_eos": True},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    answers = generate("--input", file)
    assert [len(a["outputs"][0]["token_ids"]) for a in answers] == [9, 2, 5]
    assert len(answers[2]["outputs"]) == 2


def test_a_lines_request_id_is_in_its_answer_whatever_becomes_of_it(tmp_path):
    lines = [
        {"request_id": "done", "prompt": "Once"},
        {"prompt": "Once"},
        {"request_id": "refused", "prompt": "Once", "top_p": 7},
        {"request_id": "failed", "prompt": "Once", "max_tokens": 2000, "deadline_ms": 1},
        {"request_id": "done", "prompt": "Once"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = quire("generate", "--model", MODEL, "--input", tmp_path / "in.jsonl", "--max-tokens", 2, "--output", "jsonl")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a.get("request_id") for a in answers] == ["done", None, "refused", "failed", "done"]
    assert ["error" in a for a in answers] == [False, False, True, True, False]
    assert "outputs" not in answers[2] and list(answers[0])[0] == "request_id"


def test_flags_are_the_defaults_of_lines(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "Once"}\n{"prompt": "Once", "max_tokens": 2}\n')
    answers = generate("--input", file, "--max-tokens", 5, "--temperature", 0)
    assert [len(a["outputs"][0]["token_ids"]) for a in answers] == [5, 2]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "a", "top_pp": 1}', "in.jsonl:2: unknown field 'top_pp'"),
        ('{"prompt": "a", "sampling": {"tmp": 1}}', "in.jsonl:2: unknown field 'sampling.tmp'"),
        ('{"prompt": "a", "n": "two"}', "in.jsonl:2: sampling.n must be an integer"),
        ('{"prompt": 5}', "in.jsonl:2: prompt must be a text or a list of token ids, not 5"),
        ('{"prompt_ids": 5}', "in.jsonl:2: prompt_ids must be a list of token ids, not 5"),
        ('{"messages": "hi"}', 'in.jsonl:2: messages must be a list, not "hi"'),
        ('{"prompt": "a", "temperature": 1e400}', "in.jsonl:2: not valid JSON: the number 1e400 is out of range"),
        ('{"prompt": "a", "n": 1, "n": 2}', 'in.jsonl:2: key "n" is given twice'),
        ('{"prompt": "a", "sampling": {"n": 1, "n": 1}}', 'in.jsonl:2: key "n" is given twice'),
        ('{"prompt": "a", "temperature": 0, "sampling": "greedy"}', 'in.jsonl:2: sampling must be an object, not "greedy"'),
        ('{"prompt": "a"}\0 {"top_pp": 1}', "in.jsonl:2: not valid JSON at byte 16, a NUL byte"),
        ('{"prompt": "a"', "in.jsonl:2: not valid JSON at byte"),
        ("[1, 2]", "in.jsonl:2: the request must be an object"),
    ],
)
def test_a_bad_line_is_named_before_anything_runs(tmp_path, line, complaint):
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n' + line + "\n")
    done = quire("generate", "--model", MODEL, "--input", file, "--output", "jsonl")
    assert done.returncode == 1 and complaint in done.stderr and done.stdout == ""


def test_invalid_utf8_is_named(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"prompt": "a\xff"}\n')
    done = quire("generate", "--model", MODEL, "--input", file)
    assert done.returncode == 1 and "in.jsonl:1: not UTF-8 at byte 13" in done.stderr


def test_a_refused_line_does_not_stop_the_others(tmp_path):
    lines = [{"prompt": "Once", "max_tokens": 2}, {"prompt_ids": [1, 4096]}, {"prompt": "a", "top_p": 2}, {"prompt_ids": [1] * 5000}, {"prompt": "The", "max_tokens": 3}]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    done = quire("generate", "--model", MODEL, "--input", file, "--output", "jsonl", "--temperature", 0)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and len(answers) == 5
    assert len(answers[0]["outputs"][0]["token_ids"]) == 2 and len(answers[4]["outputs"][0]["token_ids"]) == 3
    assert answers[1]["error"]["message"] == "token_ids has id 4096 at position 1; ids of this model run from 0 to 4095"
    assert answers[2]["error"]["field"] == "sampling.top_p" and answers[2]["error"]["code"] == "INVALID_ARGUMENT"
    assert "5000" in answers[3]["error"]["message"] and "4096" in answers[3]["error"]["message"], answers[3]


def test_a_model_says_how_requests_are_sampled_that_do_not(tmp_path):
    for file in MODEL.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    ids = json.loads((MODEL / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**ids, "temperature": 0}))
    ask = ["--prompt", "Once upon", "--max-tokens", 12, "--seed", 3, "--output", "json"]
    ids_of = lambda *flags: json.loads(quire("generate", *ask, *flags).stdout)["outputs"][0]["token_ids"]  # noqa: E731
    greedy, sampled = ids_of("--model", MODEL, "--temperature", 0), ids_of("--model", MODEL)
    assert greedy != sampled, "the test is of no use where they agree"
    assert ids_of("--model", tmp_path) == greedy
    assert ids_of("--model", tmp_path, "--temperature", 1) == sampled, "a flag wins, at the value that is the neutral default too"
    shown = json.loads(quire("inspect", "model", tmp_path, "--output", "json").stdout)
    assert shown["default_sampling"]["temperature"] == 0 and shown["default_sampling"]["top_p"] == 1


def test_what_did_not_happen_has_no_time():
    (answer,) = generate("--prompt-ids", "5", "--max-tokens", 0)
    assert "first_token_ms" not in answer["timings"] and answer["timings"]["total_ms"] >= 0


def test_texts_of_several_outputs_say_whose_they_are(tmp_path):
    lines = [json.dumps({"prompt": prompt, "max_tokens": 2, "n": n, "seed": 1}) for prompt, n in (("Once", 1), ("The cat", 2))]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done = quire("generate", "--model", MODEL, "--input", tmp_path / "in.jsonl", "--output", "text")
    assert re.findall(r"^\[\d+\.\d+\]", done.stdout, flags=re.M) == ["[1.0]", "[2.0]", "[2.1]"]
    assert "[R.I]" in quire("generate", "--help").stdout


def test_a_prompt_of_one_token_has_prompt_logprobs():
    (answer,) = generate("--prompt-ids", "5", "--max-tokens", 1, "--prompt-logprobs", 0)
    assert len(answer["prompt_logprobs"]) == 1 and answer["prompt_logprobs"][0].get("logprob") is None
