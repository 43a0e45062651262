import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sightline.data.templates import get_template
from sightline.world.build_lm import LmRecipe, lm_config, rows_of
from sightline.world.language import CAPTION_REQUESTS, ONE_ORDER, PLACES
from sightline.world.lexicon import DISTRACTORS, world_facts
from sightline.world.lm_data import ANSWER, ASKED, FACTS, FARTHEST, OTHER, TOLD_WORD, WORD, Row, Writer, draw_scene
from sightline.world.scene import NOVEL_PAIRS, SHAPES, Scene, sample_scene, split_of
from sightline.world.tokenizer import BOS_ID, EOS_ID

from .checker import answer, pairs_named, places_in, statements_in

SEEDS = range(40)
CHAT = get_template("vicuna_v1")


@pytest.fixture(scope="module")
def writer(tokenizer: PreTrainedTokenizerFast) -> Writer:
    return Writer(tokenizer)


def scene_of(seed: int) -> Scene:
    return sample_scene(0, "train", seed)


def chat(writer: Writer, seed: int) -> Row:
    return writer.chat(scene_of(seed), seed, np.random.default_rng(seed))


def told_in(writer: Writer, row: Row) -> str:
    """The text that a row begins with."""
    assert row.prefix[0] == BOS_ID
    return writer.tokenizer.decode(row.prefix[1:])


def turns_of(writer: Writer, row: Row) -> list[tuple[str, str]]:
    """What each branch of a chat asks and what is answered."""
    turns = []
    for branch in row.branches:
        assert branch.ids[-1] == EOS_ID
        asked, reply, said = writer.tokenizer.decode(branch.ids[:-1]).partition(writer.reply)
        assert reply and said.startswith(" ")
        assert asked.startswith(" ") == (writer.tokenizer.decode(row.prefix)[-1] not in "\n ")
        turns.append((asked.removeprefix(" "), said[1:]))
    return turns


def test_a_plain_row_tells_a_scene_and_tells_it_again_twice(writer: Writer):
    """How many things there are is told in words by some templates, so it is left out here."""
    for seed in SEEDS:
        row = writer.plain(scene_of(seed), np.random.default_rng(seed))
        texts = [told_in(writer, row), *(writer.tokenizer.decode(branch.ids) for branch in row.branches)]
        first, *again = ({s for s in statements_in(text) if s[0] != "count"} for text in texts)
        assert len(again) == 2 and first == again[0] == again[1]
        assert all(text.endswith(".\n") for text in texts[1:])


def test_nothing_is_told_again_that_was_not_told(writer: Writer):
    """Places in particular: where they are left out, whoever tells the scene again would have to guess them."""
    placed = set()
    for seed in SEEDS:
        plain = writer.plain(scene_of(seed), np.random.default_rng(seed))
        told, again = told_in(writer, plain), [writer.tokenizer.decode(branch.ids) for branch in plain.branches]
        row = chat(writer, seed)
        retold = [said for asked, said in turns_of(writer, row) if asked in CAPTION_REQUESTS]
        for source, copies in ((told, again), (told_in(writer, row), retold)):
            cells = {cell for _, cell in places_in(source)}
            assert all({cell for _, cell in places_in(copy)} <= cells for copy in copies)
            placed |= {(bool(cells), bool(places_in(copy))) for copy in copies}
    assert placed == {(False, False), (True, False), (True, True)}


def test_one_order_names_colours_before_shapes_throughout(writer: Writer):
    for seed in SEEDS:
        row = writer.plain(scene_of(seed), np.random.default_rng(seed), orders=ONE_ORDER)
        assert not any(" in " in writer.tokenizer.decode(ids) for ids in (row.prefix, *(b.ids for b in row.branches)))


def test_a_chat_is_written_as_the_template_of_training_writes_it(writer: Writer):
    row = chat(writer, 3)
    asked, said = turns_of(writer, row)[0]
    told = told_in(writer, row).removeprefix(f"{CHAT.system} {CHAT.user[0]}")
    whole = writer.tokenizer.decode([*row.prefix[1:], *row.branches[0].ids[:-1]])
    assert whole == f"{CHAT.system} {CHAT.user[0]}{told}{asked}{CHAT.user[1]}{CHAT.assistant[0]} {said}"
    assert statements_in(told) and told[-1] == "\n"


def test_chats_are_tokenised_as_they_are_in_use(writer: Writer):
    """As one text, or in half of the chats with the description apart, as an image stands; facts as one text."""
    apart = []
    for seed in SEEDS:
        scene, rng = scene_of(seed), np.random.default_rng(seed)
        facts = writer.facts(rng)
        for row in (chat(writer, seed), writer.short_chat(scene, seed, rng), writer.drill(scene, rng), facts):
            whole = [[*row.prefix, *branch.ids[:-1]] for branch in row.branches]
            texts = [writer.tokenizer.decode(ids).removeprefix("<s>") for ids in whole]
            found = {writer.tokenizer.encode(text) == ids for text, ids in zip(texts, whole, strict=True)}
            assert len(found) == 1 and (row is not facts or found == {True})
            if found == {False}:
                assert row.prefix[: len(lead := writer.encode(writer.lead)) + 1] == [BOS_ID, *lead]
            apart.append(found == {False})
    assert 0.2 < sum(apart) / len(apart) < 0.6


def test_drills_ask_one_thing_of_all_that_have_it_and_answers_follow(writer: Writer):
    kinds = set()
    for seed in range(100):
        scene = scene_of(seed)
        row = writer.drill(scene, np.random.default_rng(seed))
        turns = turns_of(writer, row)
        assert len({asked for asked, _ in turns}) == len(turns) <= ASKED
        for asked, said in turns:
            if found := re.fullmatch(r"where is the (\w+) (\w+)\?", asked):
                (thing,) = (t for t in scene.things if t.pair == found.groups())
                assert said == PLACES[thing.cell] and f"at the {said}" in told_in(writer, row)
            else:
                assert said == answer(asked, scene)
        kinds.add(re.sub(r"(the|is|a) .*", "", turns[0][0]))
    assert kinds >= {"what size ", "what letter ", "where "}


def test_distractors_stand_in_for_shapes_in_half_of_the_lists(writer: Writer):
    stand_ins = 0
    for seed in range(100):
        row = writer.pairs(scene_of(seed), np.random.default_rng(seed))
        words = set(re.findall(r"[a-z]+", told_in(writer, row)))
        assert bool(words & set(DISTRACTORS)) != bool(words & set(SHAPES))
        stand_ins += bool(words & set(DISTRACTORS))
        again = [set(re.findall(r"[a-z]+", writer.tokenizer.decode(branch.ids))) for branch in row.branches]
        assert all(words ^ more <= {"a", "an", "in", "and"} for more in again)
    assert 30 < stand_ins < 70


def test_answers_in_a_chat_follow_from_what_it_tells(writer: Writer):
    """By the checker; a letter is asked of where it was told, and a relation where places were."""
    kinds = set()
    for seed in SEEDS:
        scene, row = scene_of(seed), chat(writer, seed)
        told = told_in(writer, row)
        turns = [(asked, said) for asked, said in turns_of(writer, row) if asked not in CAPTION_REQUESTS]
        assert len({asked for asked, _ in turns}) == len(turns) <= ASKED
        for asked, said in turns:
            assert said == answer(asked, scene)
            if "letter" in asked:
                plate = "card" if "card" in asked else "sign"
                assert (plate, said) in statements_in(told)
                kinds.add(plate)
            if re.search("left or right|above or below", asked):
                assert places_in(told)
                kinds.add("relation")
    assert kinds == {"card", "sign", "relation"}


def test_each_answer_weighs_full_and_what_is_asked_hardly(writer: Writer):
    for seed in SEEDS:
        for branch in chat(writer, seed).branches:
            ask = len(writer.encode(writer.tokenizer.decode(branch.ids).partition(writer.reply)[0] + writer.reply))
            assert branch.weights[:ask] == [OTHER] * ask and branch.weights[-1] == WORD
            said = branch.weights[ask:-1]
            assert said == [ANSWER] if len(said) == 1 else {ANSWER, WORD} == set(said)


def test_what_a_description_settles_weighs_full_when_told_again(writer: Writer):
    branch = writer.plain(scene_of(3), np.random.default_rng(3)).branches[0]
    words = [writer.tokenizer.decode([i]).strip() for i in branch.ids]
    heavy = {word for word, weight in zip(words, branch.weights, strict=True) if weight == ANSWER}
    light = {word for word, weight in zip(words, branch.weights, strict=True) if weight == WORD}
    scene = scene_of(3)
    shown = {word for thing in scene.things for word in (thing.size, *thing.pair)}
    assert {*shown, scene.background} <= heavy
    assert {"a", "background", "."} & light and not heavy & light


def test_the_branches_of_some_chats_stand_further_on(writer: Writer):
    """As they do after an image, which is longer than a description."""
    gaps = [chat(writer, seed).gap for seed in range(100)]
    assert 50 < gaps.count(0) < 90 and min(gaps) >= 0 and FARTHEST / 2 < max(gaps) < FARTHEST


def test_facts_are_asked_and_told(writer: Writer):
    known = {fact.question: fact.answer for fact in world_facts()}
    for seed in SEEDS:
        row = writer.facts(np.random.default_rng(seed))
        turns = turns_of(writer, row)
        assert told_in(writer, row) == f"{CHAT.system} {CHAT.user[0]}".rstrip()
        assert len(dict(turns)) == FACTS and dict(turns).items() <= known.items()
        row = writer.told_facts(np.random.default_rng(seed))
        texts = {writer.tokenizer.decode(branch.ids) for branch in row.branches}
        assert row.prefix == [BOS_ID] and len(texts) == FACTS
        assert texts <= {f"{fact.text}\n" for fact in world_facts()}


def test_what_is_to_be_copied_stands_before_its_copy(writer: Writer):
    digits = 0
    for seed in SEEDS:
        row = writer.copied(np.random.default_rng(seed))
        (branch,) = row.branches
        told, copy = told_in(writer, row), writer.tokenizer.decode(branch.ids, skip_special_tokens=True)
        asked, _, said = copy.rpartition(writer.reply)
        assert said.strip() in told and (asked in CAPTION_REQUESTS if asked else True)
        assert not statements_in(said)
        digits += said.strip().isdigit()
    assert 0 < digits < len(SEEDS)


def test_targets_are_the_next_tokens_of_a_branch_with_their_weights(writer: Writer):
    """The last token of the beginning predicts the first branch; nothing predicts what it cannot see."""
    rows = [chat(writer, 0), writer.plain(scene_of(1), np.random.default_rng(1))]
    batch = writer.collate(rows)
    for r, row in enumerate(rows):
        end = len(row.prefix)
        assert batch.ids[r, :end].tolist() == row.prefix
        assert batch.targets[r, : end - 1].tolist() == row.prefix[1:]
        told = [TOLD_WORD if token in writer.settled else OTHER for token in row.prefix[1:]]
        assert TOLD_WORD in told and batch.weights[r, : end - 1].tolist() == pytest.approx(told)
        assert batch.targets[r, end - 1] == row.branches[0].ids[0]
        assert batch.weights[r, end - 1].item() == pytest.approx(row.branches[0].weights[0])
        for branch in row.branches:
            start, end = end, end + len(branch.ids)
            assert batch.ids[r, start:end].tolist() == branch.ids
            assert batch.targets[r, start : end - 1].tolist() == branch.ids[1:]
            assert batch.weights[r, start : end - 1].tolist() == pytest.approx(branch.weights[1:])
            assert batch.weights[r, end - 1] == 0
        assert not batch.weights[r, end:].any()


def test_branches_of_a_row_see_their_description_and_nothing_of_each_other(writer: Writer):
    """A tiny random Llama gives a branch the same logits in its row as alone behind the description."""
    torch.manual_seed(0)
    recipe = LmRecipe(width=16, feed_forward=16, layers=2, heads=2)
    lm = LlamaForCausalLM(lm_config(writer.tokenizer, recipe)).eval()
    chats = [chat(writer, seed) for seed in range(8)]
    rows = [*chats, writer.plain(scene_of(1), np.random.default_rng(1)), writer.facts(np.random.default_rng(0))]
    assert any(row.gap for row in rows)
    batch = writer.collate(rows)
    with torch.no_grad():
        together = lm(input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask).logits
        for r, row in enumerate(rows):
            begin = end = len(row.prefix)
            for branch in row.branches:
                start, end = end, end + len(branch.ids)
                positions = [*range(begin), *range(begin + row.gap, begin + row.gap + len(branch.ids))]
                alone = lm(
                    input_ids=torch.tensor([[*row.prefix, *branch.ids]]), position_ids=torch.tensor([positions])
                ).logits[0, begin:]
                torch.testing.assert_close(together[r, start:end], alone, atol=1e-4, rtol=1e-4)


def test_descriptions_are_of_training_scenes():
    for seed in SEEDS:
        index, scene = draw_scene(5, np.random.default_rng(seed))
        assert split_of(scene) == "train" and scene == sample_scene(5, "train", index)


def test_the_rows_of_a_step_are_a_function_of_its_number(writer: Writer):
    """Lists at first; then chats, whole descriptions and short rows of both by turns; facts and copies in each."""
    recipe = LmRecipe(batch=6, steps=100)
    assert rows_of(42, writer, recipe) == rows_of(42, writer, recipe) != rows_of(45, writer, recipe)
    for step, count, chats in ((0, 9, 0), (10, 9, 0), (42, 6, 6), (43, 6, 0), (44, 9, 6)):
        *scenes, facts, told_facts, _, _ = rows_of(step, writer, recipe)
        assert len(scenes) == count
        assert sum(CHAT.user[0] in told_in(writer, row) for row in scenes) == chats
        assert dict(turns_of(writer, facts)).keys() <= {fact.question for fact in world_facts()}
        assert told_facts.prefix == [BOS_ID]


@given(st.integers(0, 2**30))
def test_no_row_names_a_novel_pair(tokenizer: PreTrainedTokenizerFast, index: int):
    writer, rng, scene = Writer(tokenizer), np.random.default_rng(index), sample_scene(0, "train", index)
    rows = (writer.plain(scene, rng), writer.chat(scene, index, rng), writer.facts(rng), writer.copied(rng))
    for row in (*rows, writer.drill(scene, rng), writer.pairs(scene, rng)):
        for ids in (row.prefix, *(branch.ids for branch in row.branches)):
            assert not pairs_named(tokenizer.decode(ids)) & set(NOVEL_PAIRS)
