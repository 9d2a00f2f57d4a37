"""Files of made-up conversations in the forms of public corpora."""

import csv
import json
from pathlib import Path

from psyco_ray.config.contexts import CLIENT, THERAPIST, Context
from psyco_ray.run.types import Row
from support.raw_speeches import speech


def dialogue(seed: int, turns: int = 4) -> Context:
    """A conversation with so many client turns, most of whose words are its own."""
    said = [speech(1000 * seed + turn) for turn in range(turns)]
    asked = [f"You say that {speech(1000 * seed + 500 + turn)[-80:]} What is that like?" for turn in range(turns - 1)]
    return Context(tuple(text for pair in zip(said, [*asked, ""], strict=True) for text in pair)[:-1])


def contexts_of(whole: Context) -> list[Context]:
    """The contexts of a conversation, the opening first."""
    return [*whole.earlier, whole]


def annomi(path: Path, dialogues: dict[str, Context]) -> Path:
    """A table with a row per utterance: the therapist begins and ends, and the client's turns are in two rows each."""
    columns = ["mi_quality", "transcript_id", "topic", "utterance_id", "interlocutor", "timestamp", "utterance_text"]
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        for name, context in dialogues.items():
            rows = [("therapist", "Thanks for coming in.")]
            for message in context.messages:
                if message["role"] == THERAPIST:
                    rows.append(("therapist", message["content"]))
                else:
                    rows += [("client", part) for part in message["content"].split(", and ", 1)]
            rows.append(("therapist", "We'll stop here for today."))
            for number, (speaker, text) in enumerate(rows):
                out.writerow(["high", name, "sleep", number, speaker, f"00:00:{number:02}", text])
    return path


def read_from_annomi(context: Context) -> Context:
    """A conversation as it comes back from an `annomi` file."""
    return Context(
        tuple("\n".join(turn.split(", and ", 1)) if n % 2 == 0 else turn for n, turn in enumerate(context.turns))
    )


def esconv(path: Path, dialogues: list[Context]) -> Path:
    """A list of objects, each with a list of turns of seeker and supporter; the supporter begins and ends."""
    names = {CLIENT: "seeker", THERAPIST: "supporter"}
    rows: list[Row] = []
    for context in dialogues:
        turns = [{"speaker": "supporter", "annotation": {"strategy": "Others"}, "content": "Hello there\n"}]
        turns += [
            {"speaker": names[message["role"]], "annotation": {}, "content": f"{message['content']}\n"}
            for message in context.messages
        ]
        turns.append({"speaker": "supporter", "annotation": {"strategy": "Question"}, "content": "And now?"})
        rows.append({"emotion_type": "sadness", "problem_type": "sleep", "situation": "I lie awake.", "dialog": turns})
    path.write_text(json.dumps(rows))
    return path


def stored(path: Path, rows: list[Row]) -> Path:
    """A JSON file with a row per line."""
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
