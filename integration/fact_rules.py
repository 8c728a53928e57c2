"""Reads the facts about a restaurant out of a text, by rules.

People are free in their wording, so the rules are not perfect: they find about
nine of ten facts that a person states.
"""

import re
import unicodedata

FOODS = ("Chinese", "English", "French", "Indian", "Italian", "Japanese")
KIDS = r"\b(?:family|families|kids?|child(?:ren)?)\b"
# Numbers and words of people for the three levels of a customer rating.
RATINGS = {
    "low": ("1|one", "low|poor|bad"),
    "average": ("3|three", "average|decent|moderate"),
    "high": ("5|five", "high|excellent|great|good|top|well"),
}
# Sums of money and words for the three levels of a price range.
PRICES = {
    "low": (
        r"(?:less than|under|below|up to) ?£? ?20",
        r"cheap|inexpensive|affordabl|low.?cost",
        r"low(?:er)?",
    ),
    "average": (
        r"£? ?20 ?(?:-|to|and) ?£? ?25",
        r"moderate",
        r"(?:moderate|average|mid|medium)(?:ly)?",
    ),
    "high": (
        r"(?:more than|over|above|from|at) ?£? ?30",
        r"expensive|pricey|high.?end",
        r"high(?:er|ly)?",
    ),
}
# How the values of prompts are called here: people say "cheap" for "less than
# £20". "restaurant" says no more than the task does, and asks for nothing.
SYNONYMS = {
    ("customer rating", "1 out of 5"): "low",
    ("customer rating", "3 out of 5"): "average",
    ("customer rating", "5 out of 5"): "high",
    ("priceRange", "cheap"): "low",
    ("priceRange", "less than £20"): "low",
    ("priceRange", "moderate"): "average",
    ("priceRange", "£20-25"): "average",
    ("priceRange", "more than £30"): "high",
    ("eatType", "restaurant"): None,
}


def rating_pattern(number, words):
    """Finds "5 out of 5", "five stars", "highly rated", "rating is high"."""
    rated = r"(?:(?:customer|user|guest)s? )?(?:rat(?:ed|ings?)|reviews?)"
    return (
        rf"\b(?:{number})(?: (?:out )?of (?:5|five)|.stars?\b)"
        rf"|\b(?:{words})(?:ly|est)?.{rated}"
        rf"|\b{rated}(?: (?:is|are|of|as|very))* (?:{words})"
    )


def price_pattern(sum_of_money, words, degree):
    """Finds "less than £20", "cheap", "low priced", "prices are low"."""
    price = r"(?:pric\w*|cost\w*)"
    return (
        rf"\b{sum_of_money}\w*|\b(?:{words})\w*|\b{degree}.{price}"
        rf"|\b{price}(?: (?:is|are|of|range|in|the|very))* {degree}\b"
    )


# Slot, value, pattern, in this order: what one rule has read, no later rule
# sees, so that "not family-friendly" is never read as "family-friendly".
RULES = (
    (
        "familyFriendly",
        "no",
        rf"(?:\b(?:no|not|non)\b|n't)[^.,;]{{0,30}}?{KIDS}(?:.friendly)?"
        rf"|{KIDS}.unfriendly|\badults?\b",
    ),
    ("familyFriendly", "yes", rf"{KIDS}(?:.friendly)?"),
    ("eatType", "coffee shop", r"\bcoffee.?(?:shop|house|place|bar)?|\bcafe\b"),
    ("eatType", "pub", r"\bpub\b|\bpublic house\b"),
    ("area", "riverside", r"\briver"),
    (
        "area",
        "city centre",  # words: ok, as in the data set
        r"\b(?:city|town).?cent|\bcent(?:re|er|ral)\b",  # words: ok
    ),
    ("food", "Fast food", r"\bfast.?food"),
    *[("food", food, rf"\b{food.lower()}\b") for food in FOODS],
    *[
        ("customer rating", level, rating_pattern(*words))
        for level, words in RATINGS.items()
    ],
    *[
        ("priceRange", level, price_pattern(*words))
        for level, words in PRICES.items()
    ],
)


class Reader:
    """Finds facts in texts.

    Args:
        venues: iterable of str. The names of all restaurants and landmarks;
            some are like facts, such as "Raja Indian Cuisine".
    """

    def __init__(self, venues):
        longest_first = sorted({plain_name(v) for v in venues}, key=len)[::-1]
        names = "|".join(map(re.escape, longest_first))
        self.venue = re.compile(rf"\b(?:{names})\b")
        self.rules = [(slot, v, re.compile(p)) for slot, v, p in RULES]

    def score(self, facts, text):
        """Facts stated, less slots with anything else, by number of facts.

        Args:
            facts: dict of slots and values, as in the prompt.
            text: str.

        Returns:
            float, at most 1, which means that everything is right.
        """
        wanted = standardize(facts)
        found = self.read(text, wanted["name"])
        right = sum(found.get(slot) == {v} for slot, v in wanted.items())
        wrong = sum(bool(v - {wanted.get(slot)}) for slot, v in found.items())
        return (right - wrong) / len(wanted)

    def read(self, text, name):
        """Returns the set of values that `text` states for each slot.

        Args:
            text: str.
            name: str. The restaurant; all other venues count as landmarks.
        """
        text = plain(text)
        venues = set(self.venue.findall(text))
        found = {"name": venues & {name}, "near": venues - {name}}
        text = self.venue.sub("#", text)
        for slot, value, pattern in self.rules:
            text, count = pattern.subn("#", text)
            if count:
                found.setdefault(slot, set()).add(value)
        return found


def standardize(facts):
    """Renames the values of a prompt to those that `Reader.read` returns."""
    named = {
        slot: plain_name(value)
        if slot in ("name", "near")
        else SYNONYMS.get((slot, value), value)
        for slot, value in facts.items()
    }
    return {slot: value for slot, value in named.items() if value is not None}


def plain_name(venue):
    """The name of a venue as it is looked for in texts."""
    return plain(venue).removeprefix("the ")


def plain(text):
    """Lower case without accents: people write "Cafe" for "Café"."""
    letters = unicodedata.normalize("NFKD", text.lower())
    return "".join(c for c in letters if not unicodedata.combining(c))
