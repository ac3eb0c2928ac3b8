"""The models in the page: gpt2.js against torch, and "Try it" in a real browser."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_report import EVIL, ROWS, browser, make_run, watched  # noqa: F401
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Messages, Response, read_prompts
from rlhf_mini.evaluation.microscope import Microscope
from rlhf_mini.evaluation.responses import BARE_TEMPLATE
from rlhf_mini.models.sampling import sample
from rlhf_mini.models.scoring import attach_reader, score_texts
from rlhf_mini.models.text import encode_plain, encode_prompts, encode_responses, load_tokenizer
from rlhf_mini.report import live
from rlhf_mini.report import page as report
from rlhf_mini.report.page import ReportOptions, write_report
from stages.ppo.losses import gae

pytestmark = pytest.mark.lessons
ROOT = Path(__file__).parents[2]
ENGINE = (Path(report.__file__).parent / "gpt2.js").read_text(encoding="utf-8")
TYPED: Messages = [
    {"role": "user", "content": "Hi <|user|> there"},
    {"role": "assistant", "content": "Hello <|endoftext|>!"},
    {"role": "user", "content": "  What? 한국어"},
]
TEXTS = [
    "It's we'll THEY'RE 1234 56", "a\t\tb   c\r\nd", "  before and after  ", "héllo  wörld\n\n x",
    "e\u0301 ﷽ \ufeffbom", "한국어 텍스트 😀\u00a0x \u0085 y\u2028z", "<|user|> <|endoftext|>", "", "\x00\xad", EVIL,
]  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The shipped base and judge, and what training might have made of them."""
    torch.manual_seed(0)

    def trained(model: Any) -> Any:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        return model.eval()

    base, judge = ROOT / "data" / "base", ROOT / "data" / "judge"
    found = {name: trained(AutoModelForCausalLM.from_pretrained(base)) for name in ("sft", "ppo")}
    found["base"] = AutoModelForCausalLM.from_pretrained(base).eval()
    found |= {name: trained(AutoModelForSequenceClassification.from_pretrained(judge)) for name in ("rm", "value")}
    found["rm"].config.update({"reward_mean": 0.25, "likelihood_coef": 0.5})
    attach_reader(found["rm"], found["sft"])
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ROOT / "data" / "base")


@pytest.fixture(scope="module")
def prompts() -> list[Messages]:
    return [example["prompt"] for example in read_prompts(ROOT / "data" / "prompts" / "validation.jsonl")[:50]]


@pytest.fixture(scope="module")
def engine(browser: Any, models: dict[str, Any], tokenizer: Any) -> Iterator[Any]:  # noqa: F811
    """A page in which `models` and `tokenizer` are those of gpt2.js."""
    page = browser.new_page()
    page.evaluate(f"{ENGINE}\nObject.assign(globalThis, {{ Tokenizer, Cache, unpack, begin, sample, score, look }})")
    page.evaluate(
        """async ({ packed, tokenizer }) => {
          globalThis.tokenizer = new Tokenizer(tokenizer);
          globalThis.models = {};
          for (const [name, one] of Object.entries(packed)) models[name] = await unpack(one, models[one.start]);
        }""",
        {"packed": live.pack_models(models), "tokenizer": live.pack_tokenizer(tokenizer)},
    )
    yield page
    page.close()


# --- gpt2.js against torch -------------------------------------------------------------------------------------------


def test_texts_become_the_same_tokens(engine: Any, tokenizer: Any, prompts: list[Messages]) -> None:
    texts = [*TEXTS, *(prompt[-1]["content"] for prompt in prompts)]
    found = engine.evaluate("(texts) => texts.map((text) => tokenizer.encode(text))", texts)
    assert found == encode_plain(tokenizer, texts)
    assert engine.evaluate("(rows) => rows.map((ids) => tokenizer.decode(ids))", found) == texts
    chats = [*prompts, TYPED]
    found = engine.evaluate("(chats) => chats.map((chat) => tokenizer.encodeChat(chat))", chats)
    assert found == [one.ids for one in encode_prompts(tokenizer, chats)]
    found = engine.evaluate("(texts) => texts.map((text) => tokenizer.encodeResponse(text, true))", texts)
    assert found == encode_responses(tokenizer, texts)
    bare = copy.copy(tokenizer)
    bare.chat_template = BARE_TEMPLATE
    found = engine.evaluate("(chats) => chats.map((chat) => tokenizer.encodeBare(chat))", chats)
    assert found == [one.ids for one in encode_prompts(bare, chats)]


@pytest.mark.parametrize("name", ["base", "sft", "ppo"])
def test_logits_and_greedy_answers_are_those_of_torch(
    engine: Any, models: dict[str, Any], tokenizer: Any, prompts: list[Messages], name: str
) -> None:
    ids = [one.ids for one in encode_prompts(tokenizer, prompts)]
    found = engine.evaluate(
        """([name, rows]) => rows.map((ids) => {
          const read = begin(models[name], ids), settings = { temperature: 0, seed: 0, limit: 32, eos: tokenizer.eos };
          return { logits: [...read.logits], greedy: [...sample(models[name], read, settings)] };
        })""",
        [name, ids],
    )
    with torch.no_grad():
        for row, one in zip(ids, found, strict=True):
            expected = models[name](torch.tensor([row])).logits[0, -1]
            assert (torch.tensor(one["logits"]) - expected).abs().max() < 1e-2
    greedy = sample(models[name], ids, max_new_tokens=32, temperature=0, eos_token_id=tokenizer.eos_token_id)
    same = [one["greedy"] == row for one, row in zip(found, greedy.response_ids, strict=True)]
    assert sum(same) >= 48


def test_scores_are_those_of_the_reward_model(
    engine: Any, models: dict[str, Any], tokenizer: Any, prompts: list[Messages]
) -> None:
    encoded = encode_prompts(tokenizer, prompts[:8])
    responses = [Response("It is green, I think.", True) for _ in encoded]
    expected = score_texts(models["rm"], tokenizer, encoded, responses)
    ids = encode_plain(tokenizer, [" It is green, I think."])[0] + [tokenizer.eos_token_id]
    found = engine.evaluate(
        "([rows, ids]) => rows.map((row) => score(models, row, ids))", [[p.ids for p in encoded], ids]
    )
    assert found == pytest.approx(expected, abs=0.01)


def test_draws_follow_the_distribution(engine: Any) -> None:
    """10,000 draws of the first token at a temperature of 1, against the softmax."""
    found, expected = engine.evaluate(
        """() => {
          const read = begin(models.base, tokenizer.encode("The")), counts = {};
          for (let seed = 0; seed < 10000; seed++) {
            const [token] = sample(models.base, read, { temperature: 1, seed, limit: 1, eos: -1 });
            counts[token] = (counts[token] ?? 0) + 1;
          }
          const weights = read.logits.map(Math.exp), total = weights.reduce((a, b) => a + b);
          return [counts, [...weights].map((weight) => weight / total)];
        }"""
    )
    for token, share in enumerate(expected):
        assert abs(found.get(str(token), 0) / 10_000 - share) < 5 * (share * (1 - share) / 10_000) ** 0.5 + 1e-4


def test_advantages_are_those_of_ppo(engine: Any, models: dict[str, Any], tokenizer: Any) -> None:
    prompt, ids = encode_plain(tokenizer, ["The fox", " is red."])
    options = {
        "temperature": 0.7,
        "kl_coef": 0.1,
        "missing_eos_penalty": 1.0,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "eos": 0,
    }
    found = engine.evaluate(
        "([prompt, ids, options]) => look(models, tokenizer, prompt, ids, options)", [prompt, ids, options | {"eos": 0}]
    )
    measures = {name: torch.tensor(column) for name, column in found["measures"].items()}
    rewards = -0.1 * measures["shift"]
    rewards[-1] += found["score"] - 1  # it has not ended
    assert measures["reward"].tolist() == pytest.approx(rewards.tolist(), abs=1e-6)
    from rlhf_mini.models.rows import Rows

    expected = gae(rewards, measures["value"], Rows([len(ids)]), 0.9, 0.8).advantages
    assert measures["advantage"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert "".join(found["text"]) == " is red." and (measures["kl"] >= 0).all()


# --- what cannot be packed -------------------------------------------------------------------------------------------


def test_another_architecture_or_tokenizer_is_one_sentence(models: dict[str, Any], tokenizer: Any) -> None:
    other = AutoModelForCausalLM.from_pretrained(ROOT / "data" / "base", activation_function="relu")
    with pytest.raises(UserError, match="GPT-2's architecture only, and sft is another model"):
        live.pack_models({**models, "sft": other})
    with_system = AutoTokenizer.from_pretrained(ROOT / "data" / "base")
    with_system.chat_template = "Be kind. " + tokenizer.chat_template + "{% if messages | length > 2 %}Now{% endif %}"
    with pytest.raises(UserError, match="chat templates that write a text before and after each turn"):
        live.pack_tokenizer(with_system)


def test_a_page_of_models_that_are_too_large_goes_without(
    _nano_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_run(_nano_base, tmp_path)
    options.microscope_prompts = 0
    monkeypatch.setattr(live, "MAX_BYTES", 100)
    with console.capture() as said:
        page = write_report(options, "").read_text(encoding="utf-8")
    assert 'without "Try it": the models take up 0 MB' in said.get()
    assert 'id="try"' not in page and 'id="own"' not in page and "worker-src" not in page


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(_nano_base: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportOptions:
    options = make_run(_nano_base, tmp_path_factory.mktemp("live"))
    options.microscope_prompts = 1
    with console.capture():
        write_report(options, "the command")
    return options


@pytest.fixture
def page(browser: Any, made: ReportOptions) -> Iterator[Any]:  # noqa: F811
    with watched(browser, (made.run_dir / "report.html").resolve().as_uri()) as page:
        yield page


def ask(page: Any, text: str, **settings: str) -> None:
    """Asks, and waits until all have answered."""
    page.click("#tab-try")
    page.fill("#ask-prompt", text)
    for name, value in settings.items():
        if name == "best":
            page.select_option("[name=best]", value)
        else:
            page.evaluate("([name, value]) => { document.forms.ask.elements[name].value = value }", [name, value])
    page.click("#ask button[type=submit]")
    page.locator("#status", has_text="a second").wait_for()


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def answers(page: Any) -> list[str]:
    return page.locator("#live-answers .response").all_inner_texts()


def test_the_box_on_the_first_screen_asks_the_models(page: Any, made: ReportOptions) -> None:
    page.fill("#own-prompt", "What colour is a kiwi?")
    page.keyboard.press("Enter")
    page.locator("#status", has_text="a second").wait_for()
    assert page.locator("#tab-try").get_attribute("aria-selected") == "true" and not page.locator("#shown").is_visible()
    assert page.locator("#live-answers h3").all_inner_texts() == ["base", "SFT", "PPO"]
    assert len(set(answers(page))) == 3 and page.locator("#reply").is_visible()


def test_a_seed_gives_the_same_answers_and_another_sample_others(page: Any) -> None:
    ask(page, "Say it.", temperature="1")
    first = answers(page)
    ask(page, "Say it.", temperature="1")
    assert answers(page) == first
    page.click("#again")
    page.locator("#status", has_text="a second").wait_for()
    assert page.input_value("[name=seed]") == "1" and answers(page) != first
    ask(page, "Say it.", temperature="1", seed="0")
    assert answers(page) == first


def test_best_of_n_shows_the_sample_with_the_highest_score(page: Any, made: ReportOptions) -> None:
    ask(page, "Say it.", best="4", temperature="1.5")
    for stage in ("base", "sft", "ppo"):
        column = page.locator(f"#live-answers .{stage}")
        assert "4/4" in column.locator("dl").inner_text() and "highest score" in column.locator("h3").inner_text()
        scores = [
            float(text.lstrip("★ ").replace("−", "-")) for text in column.locator("li .number").all_text_contents()
        ]
        assert len(scores) == 4 and scores == sorted(scores, reverse=True)
        assert float(column.locator("dd").first.inner_text().replace("−", "-")) == scores[0]


def test_the_score_and_the_microscope_are_those_of_torch(page: Any, made: ReportOptions) -> None:
    ask(page, "First?", temperature="0.7")
    shown = page.locator("#live-answers .ppo dd").first.inner_text()
    page.locator("#live-answers .ppo button").click()
    page.locator("#tokens .token").first.wait_for()
    tokens = page.locator("#tokens .token").all_text_contents()
    page.locator("#microscope summary", has_text="All numbers").click()
    rows = [row.split("\t") for row in page.locator("#numbers tbody").inner_text().split("\n")]
    assert len(rows) == len(tokens)
    microscope = Microscope(made.run_dir)
    tokenizer = microscope.tokenizer
    ids_of = {tokenizer.decode([token]): token for token in range(len(tokenizer))}  # of special tokens, too
    ids = [ids_of[json.loads(row[0])] for row in rows]
    view = microscope.look([{"role": "user", "content": "First?"}], Response("", True, ids))
    assert number(shown) == pytest.approx(view.score, abs=0.01)
    for row, token in zip(rows, view.tokens, strict=True):
        numbers = [number(cell) for cell in row[1:8]]
        expected = [token.logprob, token.ref_logprob, token.shift, token.kl, token.reward, token.value, token.advantage]
        assert numbers == pytest.approx(expected, abs=0.015)


def test_a_reply_goes_on_with_what_each_of_them_said(page: Any) -> None:
    ask(page, "Hi", temperature="0")
    said = answers(page)
    page.fill("#reply-text", "And?")
    page.keyboard.press("Enter")
    page.locator("#live-answers .turn").nth(5).wait_for(state="attached")
    page.locator("#status", has_text="a second").wait_for()
    turns = page.locator("#live-answers .turn.assistant").all_inner_texts()
    assert [turn.strip() for turn in turns] == [
        text.removesuffix("(truncated)").replace("(empty)", "").strip() for text in said
    ]
    assert not page.locator("#reply").is_visible()  # two turns


@pytest.mark.parametrize("text", [EVIL, "😀 한국어 <|endoftext|><|user|>", "\u2028"])
def test_any_text_is_only_text(page: Any, text: str) -> None:
    ask(page, f"x{text}"[:90])
    assert len(answers(page)) == 3 and page.locator("img").count() == 0


def test_a_prompt_that_is_too_long_is_told_to_shorten(page: Any) -> None:
    for long in ("word " * 1000, "a" * 5000, "b " * 300):
        page.click("#tab-try")
        page.fill("#ask-prompt", long)
        page.click("#ask button[type=submit]")
        page.locator("#status", has_text="Shorten it").wait_for()
    ask(page, "Hi")
    assert len(answers(page)) == 3


def test_stop_stops(page: Any) -> None:
    page.click("#tab-try")
    page.fill("#ask-prompt", "Say it.")
    page.select_option("[name=best]", "16")
    page.evaluate("document.querySelector('#ask [type=submit]').click(); document.getElementById('stop').click()")
    assert page.locator("#status").inner_text() == "Stopped." and page.locator("#stop").is_disabled()
    ask(page, "Hi", best="1")
    assert len(answers(page)) == 3


def test_examples_are_of_each_use_case(page: Any) -> None:
    page.click("#tab-try")
    assert page.locator("#examples button").all_inner_texts() == ["First?", "Third?", ROWS[4]["prompt"][0]["content"]]
    page.locator("#examples button").first.click()
    page.locator("#status", has_text="a second").wait_for()
    assert page.input_value("#ask-prompt") == "First?"


def test_tabs_by_keyboard_and_on_a_phone(page: Any) -> None:
    page.focus("#tab-explorer")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-try" and page.locator("#try").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.locator("#explorer").is_visible() and not page.locator("#try").is_visible()
    page.set_viewport_size({"width": 360, "height": 740})
    ask(page, "Say something long enough to fill a phone.", best="2")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    unnamed = """[...document.querySelectorAll('#try button, #try input, #try select, #try textarea')]
      .filter((one) => !one.textContent.trim() && !one.labels?.length && !one.getAttribute('aria-label')).length"""
    assert page.evaluate(unnamed) == 0
