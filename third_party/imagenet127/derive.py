"""Derive classes.tsv, the grouping of ILSVRC-2012's 1000 classes into the 127 of ImageNet127.

python third_party/imagenet127/derive.py [--wordnet=/usr/share/wordnet/data.noun] [--output=FILE]

ImageNet127 is from Huh, Agrawal and Efros, "What makes ImageNet good for transfer learning?"
(arXiv:1608.08614); CReST uses it in section 4.2. A class belongs to the nearest superclass among
its hypernyms in WordNet 3.0, except for nine classes that the published grouping has elsewhere.

The input is WordNet's file of nouns, in the format wndb(5WN), and the wnids that TFDS has as labels
of imagenet2012, for which it downloads nothing. A wnid is "n" and a synset's byte offset in
data.noun of WordNet 3.0, so other versions of WordNet cannot be used.
"""

import argparse
import sys
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

WORDNET = Path("/usr/share/wordnet/data.noun")
OUTPUT = Path(__file__).with_name("classes.tsv")
COLUMNS = ("wnid", "name", "superclass", "superclass_name")

# The superclasses, with their names, which show whether data.noun is of another version. Some are
# hyponyms of others: a garment is a covering.
SUPERCLASSES = {
    "n01428580": "soft-finned fish",
    "n01482330": "shark",
    "n01495701": "ray",
    "n01503061": "bird",
    "n01629276": "salamander",
    "n01639765": "frog",
    "n01662784": "turtle",
    "n01674990": "gecko",
    "n01676755": "iguanid",
    "n01685439": "teiid lizard",
    "n01687665": "agamid",
    "n01689411": "anguid lizard",
    "n01691951": "venomous lizard",
    "n01692864": "lacertid lizard",
    "n01693783": "chameleon",
    "n01694709": "monitor",
    "n01697178": "crocodile",
    "n01698434": "alligator",
    "n01703569": "ceratopsian",
    "n01726692": "snake",
    "n01767661": "arthropod",
    "n01861778": "mammal",
    "n01909422": "coelenterate",
    "n01922303": "worm",
    "n01940736": "mollusk",
    "n02316707": "echinoderm",
    "n02512938": "food fish",
    "n02605316": "butterfly fish",
    "n02606384": "damselfish",
    "n02638596": "ganoid",
    "n02642644": "scorpaenid",
    "n02652668": "plectognath",
    "n02807260": "bath linen",
    "n02856463": "board",
    "n02858304": "boat",
    "n02924116": "bus",
    "n02942699": "camera",
    "n02954340": "cap",
    "n03035510": "cistern",
    "n03039947": "cleaning implement",
    "n03094503": "container",
    "n03101156": "cooker",
    "n03122748": "covering",
    "n03151500": "cushion",
    "n03183080": "device",
    "n03236735": "dress",
    "n03241093": "drill rig",
    "n03257586": "duplicator",
    "n03278248": "electronic equipment",
    "n03294833": "eraser",
    "n03309808": "fabric",
    "n03405725": "furniture",
    "n03414162": "game equipment",
    "n03419014": "garment",
    "n03441112": "glove",
    "n03446832": "golf equipment",
    "n03450516": "gown",
    "n03472232": "gymnastic apparatus",
    "n03476083": "hairpiece",
    "n03497657": "hat",
    "n03510583": "heavier-than-air craft",
    "n03513137": "helmet",
    "n03528263": "home appliance",
    "n03540267": "hosiery",
    "n03597469": "jewelry",
    "n03613592": "key",
    "n03619396": "kit",
    "n03664943": "ligament",
    "n03666917": "lighter-than-air craft",
    "n03678362": "litter",
    "n03764276": "military vehicle",
    "n03825080": "nightwear",
    "n03837422": "oar",
    "n03880531": "pan",
    "n03896233": "passenger train",
    "n03906997": "pen",
    "n03961939": "platform",
    "n03964744": "plaything",
    "n03990474": "pot",
    "n04015204": "protective garment",
    "n04077734": "rescue equipment",
    "n04099429": "rocket",
    "n04100174": "rod",
    "n04125853": "safety belt",
    "n04128837": "sailing vessel",
    "n04185071": "sharpener",
    "n04194289": "ship",
    "n04235291": "sled",
    "n04264914": "spacecraft",
    "n04285622": "sports implement",
    "n04317420": "stick",
    "n04341686": "structure",
    "n04377057": "system",
    "n04447443": "toiletry",
    "n04451818": "tool",
    "n04500060": "turner",
    "n04509592": "uniform",
    "n04571292": "weight",
    "n06595351": "magazine",
    "n06793231": "sign",
    "n06874019": "light",
    "n07557434": "dish",
    "n07560652": "fare",
    "n07579575": "entree",
    "n07582609": "dip",
    "n07611358": "frozen dessert",
    "n07612996": "pudding",
    "n07680932": "bun",
    "n07681926": "cracker",
    "n07683786": "loaf of bread",
    "n07707451": "vegetable",
    "n07800740": "fodder",
    "n07829412": "sauce",
    "n07882497": "concoction",
    "n07891726": "wine",
    "n07929519": "coffee",
    "n07930554": "punch",
    "n09214060": "bar",
    "n09287968": "geological formation",
    "n09289709": "globule",
    "n09820263": "athlete",
    "n10019552": "diver",
    "n10401829": "participant",
    "n11669921": "flower",
    "n12992868": "fungus",
    "n13134947": "fruit",
    "n15074962": "tissue",
}

# Classes that the published grouping does not have at their nearest superclass.
EXCEPTIONS = {
    "n02687172": "n03764276",  # aircraft carrier: military vehicle
    "n02916936": "n03122748",  # bulletproof vest: covering
    "n03000684": "n03183080",  # chain saw: device
    "n03085013": "n03278248",  # computer keyboard: electronic equipment
    "n03445777": "n03414162",  # golf ball: game equipment
    "n04347754": "n03764276",  # submarine: military vehicle
    "n04371774": "n03183080",  # swing: device
    "n04389033": "n03094503",  # tank: container
    "n04423845": "n03122748",  # thimble: covering
}


class DeriveError(Exception):
    """The table cannot be derived; the message says what to do."""


class Synset(NamedTuple):
    """The meaning of a noun: its words, and the wnids of its hypernyms in WordNet's order."""

    words: tuple[str, ...]
    hypernyms: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the first word."""
        return self.words[0]


def parse_synset(line: str) -> tuple[str, Synset]:
    """Parse a line of data.noun, and return the wnid and the synset.

    According to wndb(5WN), a line is

        offset lex_filenum ss_type w_cnt word lex_id ... p_cnt symbol offset pos source/target ... |

    followed by the gloss; w_cnt is hexadecimal and p_cnt decimal. Only the pointer "@" (hypernym)
    is used. "@i" points from an individual (Paris) to its kind (city). No synset at or above one of
    the 1000 classes has such a pointer, because ImageNet's classes are kinds.

    Raises:
      ValueError, IndexError: the line does not have this format.
    """
    fields = line.partition(" | ")[0].split()
    words_end = 4 + 2 * int(fields[3], 16)
    words = tuple(word.replace("_", " ") for word in fields[4:words_end:2])
    start = words_end + 1
    end = start + 4 * int(fields[words_end])
    if not words or len(fields) != end:
        raise ValueError(f"{len(fields)} fields, and its counts promise {end}")
    pointers = zip(fields[start:end:4], fields[start + 1 : end : 4], strict=True)
    hypernyms = tuple(f"n{offset}" for symbol, offset in pointers if symbol == "@")
    return f"n{fields[0]}", Synset(words, hypernyms)


def read_synsets(path: Path) -> dict[str, Synset]:
    """Read data.noun, and return its synsets by wnid."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DeriveError(
            f"{path} is missing: it is data.noun of WordNet 3.0, in Debian's and Ubuntu's package "
            "wordnet-base, and in dict/ of WordNet-3.0.tar.gz from https://wordnet.princeton.edu; "
            "name it with --wordnet"
        ) from None
    synsets = {}
    for number, line in enumerate(lines, start=1):
        if line.startswith("  "):  # the licence, at the top
            continue
        try:
            wnid, synset = parse_synset(line)
        except (ValueError, IndexError) as error:
            raise DeriveError(f"{path}:{number} is not as wndb(5WN) has it: {error}") from error
        synsets[wnid] = synset
    return synsets


def check_version(synsets: Mapping[str, Synset], superclasses: Mapping[str, str]) -> None:
    """Raise an error unless the superclasses' wnids mean the same as in WordNet 3.0."""
    for wnid, name in superclasses.items():
        found = synsets[wnid].name if wnid in synsets else "nothing"
        if found != name:
            raise DeriveError(
                f"{wnid} should be {name!r} and is {found!r}: "
                "this is not WordNet 3.0, whose offsets the wnids are"
            )


def nearest(wnid: str, synsets: Mapping[str, Synset], wanted: Collection[str]) -> str | None:
    """Return the nearest of the wanted synsets by a breadth-first search of the hypernyms.

    If two are at the same distance, the first in WordNet's order of hypernyms is returned. This
    decides the superclass of iPod, joystick, warplane and meat loaf.
    """
    queue, seen = deque([wnid]), {wnid}
    while queue:
        current = queue.popleft()
        if current in wanted:
            return current
        above = [hypernym for hypernym in synsets[current].hypernyms if hypernym not in seen]
        queue.extend(above)
        seen.update(above)
    return None


def group(
    wnids: Iterable[str],
    synsets: Mapping[str, Synset],
    superclasses: Collection[str],
    exceptions: Mapping[str, str],
) -> dict[str, str]:
    """Return the superclass of every class, both as wnids."""
    groups = {}
    for wnid in wnids:
        if wnid not in synsets:
            raise DeriveError(f"class {wnid} is not in WordNet: is this version 3.0?")
        found = exceptions.get(wnid) or nearest(wnid, synsets, superclasses)
        if found is None:
            raise DeriveError(
                f"class {wnid} ({synsets[wnid].name}) is below none of the "
                f"{len(superclasses)} superclasses"
            )
        groups[wnid] = found
    return groups


def table(groups: Mapping[str, str], synsets: Mapping[str, Synset]) -> str:
    """Return the text of classes.tsv, sorted by wnid."""
    rows = (
        (wnid, synsets[wnid].name, superclass, synsets[superclass].name)
        for wnid, superclass in sorted(groups.items())
    )
    return "".join("\t".join(row) + "\n" for row in (COLUMNS, *rows))


def ilsvrc2012_wnids() -> list[str]:
    """Return the wnids of the 1000 classes, in the order of TFDS' labels."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise DeriveError(
            "the wnids of ILSVRC-2012 come from TFDS: pip install tensorflow tensorflow-datasets"
        ) from None
    return tfds.builder("imagenet2012").info.features["label"].names


def derive(wordnet: Path) -> str:
    """Return the text of classes.tsv, derived from a data.noun."""
    synsets = read_synsets(wordnet)
    check_version(synsets, SUPERCLASSES)
    return table(group(ilsvrc2012_wnids(), synsets, SUPERCLASSES, EXCEPTIONS), synsets)


def main() -> None:
    """Derive the table and write it."""
    parser = argparse.ArgumentParser(description="Derives the class table of ImageNet127.")
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="data.noun of WordNet 3.0")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the table goes")
    args = parser.parse_args()
    try:
        args.output.write_text(derive(args.wordnet), encoding="utf-8")
    except DeriveError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
