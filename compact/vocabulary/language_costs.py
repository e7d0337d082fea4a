"""Tokens per character in English, code and ten other languages, before and after pruning the vocabulary.

The sentences were written for this project. The one for each language says the same thing, so that the languages can
be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compact.vocabulary.tokenizer import encode, load_tokenizer

SENTENCES: dict[str, str] = {
    "English": "The train to the coast leaves at seven in the morning, and it is often full, so we should buy our "
    "tickets today and pack some bread, fruit and water for the journey.",
    "Code": "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n",
    "German": "Der Zug an die Küste fährt um sieben Uhr morgens ab und ist oft voll, deshalb sollten wir die "
    "Fahrkarten heute kaufen und Brot, Obst und Wasser für die Reise einpacken.",
    "French": "Le train pour la côte part à sept heures du matin et il est souvent plein, nous devrions donc acheter "
    "nos billets aujourd'hui et emporter du pain, des fruits et de l'eau pour le voyage.",
    "Spanish": "El tren a la costa sale a las siete de la mañana y a menudo va lleno, así que deberíamos comprar los "
    "billetes hoy y llevar pan, fruta y agua para el viaje.",
    "Portuguese": "O comboio para a costa parte às sete da manhã e está muitas vezes cheio, por isso devemos comprar "
    "os bilhetes hoje e levar pão, fruta e água para a viagem.",
    "Italian": "Il treno per la costa parte alle sette del mattino ed è spesso pieno, quindi dovremmo comprare i "
    "biglietti oggi e portare pane, frutta e acqua per il viaggio.",
    "Russian": "Поезд к морю отходит в семь часов утра и часто бывает полон, поэтому нам стоит купить билеты сегодня "
    "и взять в дорогу хлеб, фрукты и воду.",
    "Chinese": "去海边的火车早上七点出发，常常坐满了人，所以我们应该今天就买票，并带上面包、水果和水在路上吃。",
    "Japanese": "海へ行く電車は朝七時に出発し、よく満員になるので、今日のうちに切符を買い、旅のためにパンと果物と水を"
    "用意しておきましょう。",
    "Arabic": "يغادر القطار إلى الساحل في السابعة صباحا وغالبا ما يكون ممتلئا، لذلك علينا أن نشتري التذاكر اليوم "
    "وأن نأخذ معنا خبزا وفاكهة وماء للرحلة.",
    "Hindi": "तट की ओर जाने वाली गाड़ी सुबह सात बजे निकलती है और अक्सर भरी रहती है, इसलिए हमें आज ही टिकट खरीद लेना "
    "चाहिए और यात्रा के लिए रोटी, फल और पानी रख लेना चाहिए।",
}


# Language -> its code in `--languages`.
CODES = {
    "English": "en",
    "Code": "code",
    "German": "de",
    "French": "fr",
    "Spanish": "es",
    "Portuguese": "pt",
    "Italian": "it",
    "Russian": "ru",
    "Chinese": "zh",
    "Japanese": "ja",
    "Arabic": "ar",
    "Hindi": "hi",
}


@dataclass(frozen=True)
class LanguageCost:
    """Tokens per character before and after pruning."""

    language: str
    before: float
    after: float

    @property
    def ratio(self) -> float:
        return self.after / self.before


def language_costs(before: Path, after: Path) -> list[LanguageCost]:
    """Compare the tokenizers of two checkpoint directories on the built-in sentences."""
    texts = list(SENTENCES.values())
    old = encode(load_tokenizer(before), texts, add_special_tokens=False)
    new = encode(load_tokenizer(after), texts, add_special_tokens=False)
    return [
        LanguageCost(language, len(a) / len(text), len(b) / len(text))
        for (language, text), a, b in zip(SENTENCES.items(), old, new, strict=True)
    ]
