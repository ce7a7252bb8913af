"""Writes the pre-training text of luthier-tiny as JSONL: {"text": …} and {"messages": […]} rows.

The rows practise the skills that the example tasks need, in notations and with labels that no task
uses: repeating, looking a key up, copying a span into a named field, answering from a passage,
putting a message under a topic, calling a function from a list. Names are made of syllables, so an
answer can only be copied. Rows grow from short to long over the first half of the file, so train in
file order; --level 1 writes rows of full length from the start, for a second stage.

  python3 examples/generate/pretraining.py --rows 600000 > corpus.jsonl
"""

import argparse
import json
import pathlib
import random
import sys

import words


class Writer:
  """Makes one row after another; `level` in [0, 1] sets how long and how nested a row may be."""

  def __init__(self, seed, pieces):
    self.rng = random.Random(seed)
    self.names = words.Names(self.rng, "train", real=0.15)
    self.pieces = pieces  # the tokenizer's tokens that are plain text
    self.level = 0.0

  def pick(self, *options):
    return self.rng.choice(options)

  def count(self, low, high):
    """Between low and high, the upper end reached as the level rises."""
    return self.rng.randint(low, max(low, round(low + (high - low) * self.level)))

  def value(self):
    """A thing worth copying: mostly made-up names, for they cannot be guessed."""
    n, rng = self.names, self.rng
    kind = rng.random()
    if kind < 0.55:
      return n.word()
    if kind < 0.65:
      return n.full()
    if kind < 0.72:
      return n.place()
    if kind < 0.78:
      return n.company()
    if kind < 0.90:
      return rng.choice([n.number, n.time, n.code, n.date, lambda: n.digits(5)])()
    return rng.choice([self.thing, lambda: rng.choice(words.JOBS), lambda: rng.choice(words.FOODS)])()

  def thing(self):
    item = self.pick(*words.ITEMS)
    return f"{self.pick(*words.COLOURS)} {item}" if self.rng.random() < 0.4 else item

  def chat(self, user, answer, system=None):
    turns = [{"role": "system", "content": system}] if system else []
    return {"messages": turns + [{"role": "user", "content": user},
                                 {"role": "assistant", "content": answer}]}

  def ask(self, instruction, material, answer):
    """The same exercise as a chat with or without a system message, or as plain text."""
    style = self.rng.random()
    if style < 0.4:
      return self.chat(material, answer, instruction)
    if style < 0.6:
      return self.chat(self.pick(f"{instruction}\n{material}", f"{material}\n{instruction}"), answer)
    return {"text": self.pick(f"{instruction}\n{material}\n{answer}", f"{material}\n{instruction}\n{answer}",
                              f"{instruction} {material} => {answer}")}


# --- repetition -----------------------------------------------------------------------------------

def repeat(w):
  """A sequence and the same sequence again: what makes copying heads form."""
  items = [w.value() for _ in range(w.count(1, 8))]
  joined = w.pick(" ", ", ", " / ", "; ", "\n").join(items)
  if w.rng.random() < 0.3:
    return w.chat(joined, joined, w.pick("Repeat.", "Say it again.", "Copy the text."))
  return {"text": w.pick(" | ", "\n", " = ", " -> ", "\nagain: ").join([joined] * w.rng.randint(2, 3))}


def quoted_copy(w):
  """One name in many surroundings: the same word after a space, a quote, a bracket."""
  value = w.value()
  frames = ['"{}"', "({})", "[{}]", "<{}>", "name: {}", "name={}", "- {}", "{}!", "'{}'", "{{{}}}", '["{}"]', "{},", "#{}"]
  return {"text": w.pick(" ", "\n").join(w.pick(*frames).format(value) for _ in range(w.count(3, 6)))}


def pieces(w):
  """Tokens of the vocabulary in words that do not exist: an adapter cannot teach a tied and frozen
  embedding to emit a token that pre-training never showed."""
  made = ["".join(w.rng.choice(w.pieces) for _ in range(w.rng.randint(1, 3))) for _ in range(w.count(2, 6))]
  joined = w.pick(" ", ", ", "_", "\n", "; ").join(made)
  if w.rng.random() < 0.3:
    return w.chat(joined, joined, w.pick("Repeat.", "Say it again.", "Copy the text."))
  return {"text": w.pick(" | ", "\n", " = ").join([joined] * 2)}


def identifier(w):
  """A name as programs have them: words joined by underscores."""
  pool = w.pick(words.FIELD_WORDS, words.ITEMS, words.ANIMALS, VERBS, words.FOODS, words.ADJECTIVES)
  if w.rng.random() < 0.15:
    return w.names.word().lower()
  return "_".join([w.pick(*VERBS), w.pick(*pool)] if w.rng.random() < 0.7 else [w.pick(*pool) for _ in range(w.rng.randint(1, 2))])


VERBS = ("open close read write start stop find show take give move turn keep drop count send call ask fetch pay draw clean "
         "fill cut hold push pull wash paint check list load store print ring tell visit plan join leave mark").split()


# --- keys and values ------------------------------------------------------------------------------

def look_up(w):
  """A table of pairs, then one or more of the keys asked for."""
  rng = w.rng
  keys = rng.sample(words.FIELD_WORDS, 6) if rng.random() < 0.5 else [w.names.word() for _ in range(6)]
  pairs = dict.fromkeys(keys[:w.count(2, 6)])
  for key in pairs:
    pairs[key] = w.value()
  says = w.pick("{k} = {v}", "{k}: {v}", "{k} -> {v}", "{k} is {v}", '"{k}": "{v}"', "{k}={v}", "the {k} is {v}")
  table = w.pick("\n", "; ", ", ").join(says.format(k=k, v=v) for k, v in pairs.items())
  asked = rng.sample(list(pairs), rng.randint(1, len(pairs)))
  if rng.random() < 0.4:
    return {"text": table + "\n" + "\n".join(says.format(k=k, v=pairs[k]) for k in asked)}
  key = asked[0]
  return w.ask(w.pick("{k}?", "What is {k}?", "Give the {k}.", "Find {k}.").format(k=key), table, pairs[key])


def line_number(w):
  """Which line holds a word: numbered lists, in brackets of several kinds."""
  values = [w.value() for _ in range(w.count(2, 5))]
  mark = w.pick("{}. {}", "({}) {}", "line {}: {}", "{}) {}", "#{} {}")
  asked = w.rng.randrange(len(values))
  listing = w.pick("\n", " ").join(mark.format(i + 1, v) for i, v in enumerate(values))
  if w.rng.random() < 0.5:
    return w.ask(f"Which line has {values[asked]}?", listing, w.pick(f"line {asked + 1}", f"({asked + 1})"))
  return w.ask(f"What is in line {asked + 1}?", listing, values[asked])


# --- facts about people and things ----------------------------------------------------------------

# field names · clauses after the subject · questions · the kind of value
FACTS = [
    (("city", "home", "town"), ("lives in {}", "has a home in {}", "stays in {}", "has lived in {} for years", "rents a room in {}"),
     ("Where does {s} live?", "Where is the home of {s}?", "In which town is {s} at home?"), "place"),
    (("origin", "from", "birthplace"), ("is from {}", "was born in {}", "comes from {}", "grew up in {}"),
     ("Where is {s} from?", "Where was {s} born?", "From where does {s} come?"), "place"),
    (("employer", "firm", "works"), ("works for {}", "has a job at {}", "is employed by {}", "earns money at {}"),
     ("Who pays {s}?", "Where does {s} work?", "Which firm does {s} work for?"), "company"),
    (("leads", "company"), ("runs {}", "is the head of {}", "leads {}", "started {}", "owns {}"),
     ("What does {s} run?", "Which company does {s} lead?"), "company"),
    (("partner", "spouse"), ("is married to {}", "married {}", "is the wife of {}"),
     ("Who is {s} married to?", "Who is the partner of {s}?"), "person"),
    (("friend", "met"), ("met {}", "is a friend of {}", "likes {}", "had lunch with {}", "saw {}"),
     ("Who did {s} meet?", "Who is a friend of {s}?"), "person"),
    (("called", "contact"), ("called {}", "phoned {}", "spoke to {} on the phone", "wrote a letter to {}"),
     ("Who did {s} call?", "Who did {s} speak to?"), "person"),
    (("pet", "animal name"), ("has a {animal} called {}", "has a {animal} with the name {}", "feeds the {animal} {}"),
     ("What is the name of the pet of {s}?", "Which name has the {animal} of {s}?"), "person"),
    (("trip", "to", "goal"), ("went to {}", "drove to {}", "took the train to {}", "flew to {}", "moved to {}", "is on the way to {}"),
     ("Where did {s} go?", "Which town did {s} go to?"), "place"),
    (("time", "start", "up"), ("gets up at {}", "wakes up at {}", "starts work at {}", "arrives at {}"),
     ("At what hour is {s} up?", "At what time does {s} start?"), "time"),
    (("day", "date"), ("arrives on {}", "leaves on {}", "has a party on {}"), ("On which day is it?", "When is the day of {s}?"), "date"),
    (("count", "amount", "number"), ("has {} books", "owns {} coins", "sold {} tickets", "counted {} birds"),
     ("How many does {s} have?", "What number belongs to {s}?"), "number"),
    (("job", "work"), ("is a {}", "works as a {}", "wants to be a {}"), ("What is the job of {s}?", "What does {s} do?"), "job"),
    (("buys", "item", "thing"), ("buys a {}", "ordered a {}", "lost a {}", "wants a {}", "needs a {}"),
     ("What does {s} buy?", "What does {s} want?", "Which thing is it?"), "item"),
    (("drink", "likes"), ("drinks {}", "likes {}", "asks for {}"), ("What does {s} drink?", "What does {s} like?"), "drink"),
    (("code", "id", "key"), ("has the code {}", "uses the key {}", "got number {}"), ("What is the code of {s}?", "Which key does {s} use?"), "code"),
]


def fact_value(w, kind):
  n = w.names
  return {"place": n.place, "company": n.company, "person": n.person, "time": n.time, "date": n.date,
          "number": n.number, "code": n.code, "job": lambda: w.pick(*words.JOBS), "item": w.thing,
          "drink": lambda: w.pick(*words.DRINKS)}[kind]()


def passage(w, most):
  """Facts as (subject, fact, value) and their sentences, distractors of the same kind included."""
  rng = w.rng
  count = max(1, w.count(1, most))
  facts = [rng.choice(FACTS) for _ in range(count)]
  if rng.random() < 0.5:
    facts = [facts[0]] * count  # one relation, several people: only the name decides
  one_subject = len(set(map(id, facts))) == count and rng.random() < 0.4
  subject = w.names.person()
  animal = w.pick(*words.ANIMALS)
  rows = []
  for fact in facts:
    rows.append((subject if one_subject else w.names.person(), fact, fact_value(w, fact[3])))
  sentences = []
  for s, fact, value in rows:
    clause = rng.choice(fact[1]).replace("{animal}", animal).format(value)
    lead = w.pick("", "", "", "", "Today ", f"On {w.pick(*words.DAYS)} ", "In the end ", "They say that ")
    who = w.pick(s, s, s, s, f"the {w.pick(*words.JOBS)} {s}", f"{s}, a {w.pick(*words.JOBS)},")
    sentence = f"{lead}{who} {clause}"
    sentences.append(sentence[0].upper() + sentence[1:] + ".")
  return rows, sentences, animal


def story(w):
  _, sentences, _ = passage(w, 6)
  return {"text": " ".join(sentences)}


def question(w):
  """A passage and one to three questions about it."""
  rows, sentences, animal = passage(w, 5)
  text = " ".join(sentences)
  asked = w.rng.sample(rows, w.rng.randint(1, min(3, len(rows))))
  dialogue = [(w.pick(*fact[2]).format(s=s, animal=animal), value) for s, fact, value in asked]
  if w.rng.random() < 0.5:
    q, a = dialogue[0]
    return w.ask(q, text, w.pick(a, a, a + "."))
  q = w.pick(("Q: ", "\nA: "), ("Question: ", " Answer: "), ("", " "), ("- ", " -> "))
  return {"text": text + "\n" + "\n".join(f"{q[0]}{x}{q[1]}{a}" for x, a in dialogue)}


NOTATIONS = [
    lambda pairs: ", ".join(f"{k} = {v}" for k, v in pairs),
    lambda pairs: "; ".join(f"{k} is {v}" for k, v in pairs),
    lambda pairs: "\n".join(f"* {k} {v}" for k, v in pairs),
    lambda pairs: "".join(f"<{k}>{v}</{k}>" for k, v in pairs),
    lambda pairs: " | ".join(v for _, v in pairs),
    lambda pairs: "[" + ", ".join(f'["{k}", "{v}"]' for k, v in pairs) + "]",
    lambda pairs: "(" + " ".join(f'({k} "{v}")' for k, v in pairs) + ")",
    lambda pairs: "{" + ", ".join(f'"{k}": "{v}"' for k, v in pairs) + "}",
    lambda pairs: "\n".join(f"{k.upper()} {v}" for k, v in pairs),
    lambda pairs: "\n".join(f"{k}: {v}" for k, v in pairs),
]


def fields(w):
  """Fields of a passage, asked for by name, in one of many notations."""
  rng = w.rng
  subject = w.names.person() if rng.random() < 0.6 else w.names.full()
  facts = rng.sample(FACTS, w.count(1, 4))
  values = [fact_value(w, fact[3]) for fact in facts]
  clauses = [rng.choice(f[1]).replace("{animal}", w.pick(*words.ANIMALS)).format(v) for f, v in zip(facts, values)]
  text = f"{subject} " + w.pick(", ", " and ").join(clauses) + "."
  pairs = [(w.pick("who", "person", "subject"), subject)] + [(w.pick(*f[0]), v) for f, v in zip(facts, values)]
  rng.shuffle(pairs)
  pairs = pairs[:rng.randint(1, len(pairs))]
  keys = ", ".join(k for k, _ in pairs)
  return w.ask(w.pick("Fields: {}", "Write {}.", "Give {}.", "Find {}:").format(keys), text, rng.choice(NOTATIONS)(pairs))


def kinds(w):
  """All names of one kind in a text: people, towns or firms, told apart by what is said of them."""
  rows, sentences, _ = passage(w, 4)
  kind = w.pick("place", "company", "person")
  found = [v for s, f, v in rows if f[3] == kind]
  if kind == "person":
    found = [name for s, f, v in rows for name in ([s, v] if f[3] == "person" else [s])]
  word = {"place": w.pick("towns", "cities"), "company": w.pick("firms", "companies"), "person": w.pick("people", "humans")}[kind]
  joined = w.pick("; ", " and ", "\n").join(dict.fromkeys(found))
  return w.ask(w.pick("List the {}.", "Which {} are named?", "All {}:").format(word), " ".join(sentences), joined or "none")


def kinds_in_lines(w):
  """All names of a text by kind, a line for each kind that occurs: people first, as the labels are given."""
  rows, sentences, _ = passage(w, 3)
  labels = {"person": w.pick("who", "human", "people", "man"), "place": w.pick("where", "town", "city", "site"),
            "company": w.pick("firm", "company", "trade", "house")}
  found = {kind: [] for kind in labels}
  for subject, fact, value in rows:
    found["person"].append(subject)
    if fact[3] in found:
      found[fact[3]].append(value)
  text = " ".join(sentences)
  shown = [kind for kind in labels if found[kind]]
  frame, comma = w.pick("{} = {}", "<{}> {}", "{}- {}", "({}) {}"), w.pick(", ", " and ", "; ")
  lines = [frame.format(labels[kind], comma.join(sorted(set(found[kind]), key=text.index))) for kind in shown]
  return w.ask(w.pick("Names by kind: ", "Sort the names: ", "Kinds: ") + ", ".join(labels.values()), text, "\n".join(lines))


# --- orders and requests --------------------------------------------------------------------------

def order(w):
  """Somebody wants a number of things somewhere: questions and fields about it."""
  n, rng = w.names, w.rng
  number = rng.randint(2, 99)
  item = words.plural(w.pick(*words.ITEMS))
  item = f"{w.pick(*words.COLOURS)} {item}" if rng.random() < 0.4 else item
  name, place = (n.full() if rng.random() < 0.3 else n.person()), n.place()
  want = w.pick("{n} needs {c} {i} in {p}", "please bring {c} {i} to {p} for {n}", "{n} bought {c} {i} in {p}",
                "send {c} {i} to {n} in {p}", "I am {n} from {p} and want {c} {i}", "{c} {i} go to {n}, {p}",
                "in {p} {n} asks for {c} {i}", "to {p}: {c} {i}. Regards, {n}", "my name is {n}. I live in {p}. Ship {c} {i}",
                "{n} in {p} would like {c} {i}").format(n=name, c=number, i=item, p=place)
  text = want[0].upper() + want[1:] + "."
  pairs = [("buyer", name), ("goal", place), ("goods", item), ("pieces", str(number))]
  if rng.random() < 0.5:
    key, value = rng.choice(pairs)
    return w.ask({"buyer": w.pick("Who is it?", "Whose goods are these?"), "goal": w.pick("Where to?", "Which town?"),
                  "goods": w.pick("What is wanted?", "Which goods?"), "pieces": w.pick("How many?", "What number?")}[key], text, value)
  rng.shuffle(pairs)
  return w.ask("Fields: " + ", ".join(k for k, _ in pairs), text, rng.choice(NOTATIONS)(pairs))


# parameters of the function · ways to ask for it; {0} and {1} are the arguments · kinds of the arguments
FUNCTIONS = {
    "wake": (("hour",), ("Wake me at {0}.", "I must get up at {0}.", "Ring at {0}.", "An alarm at {0}, please.", "Please set the clock to {0}."), ("time",)),
    "mail": (("receiver", "body"), ("Tell {0} that {1}.", "Write to {0}: {1}.", "Let {0} know: {1}.", "Send {0} a note: {1}.",
                                    "Please inform {0} that {1}.", "A message to {0}: {1}.", "Text {0}: {1}."), ("person", "note")),
    "travel": (("start", "goal"), ("I go from {0} to {1}.", "Get me from {0} to {1}.", "A ticket from {0} to {1}, please.",
                                   "Find the train from {0} to {1}.", "To {1} from {0}, by rail.", "Buy a train ticket to {1} from {0}."), ("place", "place")),
    "sky": (("town",), ("Will it rain in {0}?", "Is it sunny in {0}?", "How is the weather in {0}?", "Is there snow in {0}?", "Weather of {0} today?"), ("place",)),
    "sing": (("who",), ("Play a song by {0}.", "I want to hear {0}.", "Put on an album of {0}.", "Music by {0}, please.", "Let me listen to {0}."), ("person",)),
    "change": (("sum", "into"), ("Change {0} euros into {1}.", "Convert {0} to {1}.", "How many {1} are {0} euros?", "What is {0} in {1}?"), ("number", "money")),
    "save": (("who", "digits"), ("Save {0} with {1}.", "The number of {0} is {1}.", "Remember {1} for {0}.", "{0} has the phone {1}, add it.",
                                 "Store the contact {0}: {1}."), ("person", "digits")),
    "buy": (("goods", "town"), ("Where in {1} can I buy a {0}?", "Find a {0} in {1}.", "Who in {1} sells a {0}?", "I need a {0} shop in {1}.",
                                "Which store in {1} has a {0}?"), ("item", "place")),
    "lock": (("door",), ("Lock the {0} door.", "Close the {0} door, please."), ("colour",)),
    "light": (("room",), ("Turn on the light in room {0}.", "Make room {0} bright."), ("number",)),
    "cook": (("dish", "guest"), ("Cook {0} for {1}.", "{1} wants to eat {0}.", "Make {0}, {1} is hungry."), ("food", "person")),
    "meet": (("who", "hour"), ("I meet {0} at {1}.", "Plan a meeting with {0} at {1}.", "At {1} {0} comes to see me."), ("person", "time")),
    "ride": (("driver", "stop"), ("{0} drives me to {1}.", "Ask {0} for a ride to {1}.", "Get {0} and go to {1}."), ("person", "place")),
    "lend": (("thing", "borrower"), ("Lend the {0} to {1}.", "{1} may have the {0}.", "Give the {0} to {1}."), ("item", "person")),
    "paint": (("object", "paint"), ("Paint the {0} {1}.", "I want the {0} in {1}.", "Make the {0} {1}."), ("item", "colour")),
    "room": (("hotel_town", "nights"), ("A room in {0} for {1} nights.", "I stay {1} nights in {0}.", "Book a hotel in {0}, {1} nights."), ("place", "number")),
    "count": (("goods", "pieces"), ("There are {1} pieces of the {0}.", "Note {1} for the {0}.", "We have {1} of the {0} left."), ("item", "number")),
    "dial": (("phone",), ("Dial {0}.", "Call the number {0}.", "Ring {0}, please."), ("digits",)),
    "table": (("guests", "hour"), ("A table for {0} at {1}.", "We are {0} and come at {1}.", "Dinner for {0} at {1}, please."), ("number", "time")),
    "visit": (("town", "host"), ("I visit {1} in {0}.", "Plan a trip to {0}, {1} is there.", "{1} waits for me in {0}."), ("place", "person")),
    "hire": (("worker", "firm"), ("{1} hires {0}.", "Give {0} a job at {1}.", "Let {0} work for {1}."), ("person", "company")),
    "order_food": (("dish", "number"), ("I want {1} times {0}.", "Bring {1} plates of {0}.", "{1} of the {0}, please."), ("food", "number")),
    "news": (("firm",), ("What is new at {0}?", "Any news of {0}?", "Tell me about {0}."), ("company",)),
    "feed": (("animal", "food"), ("Give the {0} some {1}.", "The {0} wants {1}.", "Feed {1} to the {0}."), ("animal", "food")),
}
CALLS = [
    lambda f, pairs: f"{f}({', '.join(f'{k}={v}' for k, v in pairs)})",
    lambda f, pairs: f"{f}: " + ", ".join(v for _, v in pairs),
    lambda f, pairs: f"<{f} " + " ".join(f'{k}="{v}"' for k, v in pairs) + ">",
    lambda f, pairs: '{"do": "' + f + '", ' + ", ".join(f'"{k}": "{v}"' for k, v in pairs) + "}",
    lambda f, pairs: f'["{f}", {", ".join(chr(34) + v + chr(34) for _, v in pairs)}]',
    lambda f, pairs: f"{f} " + " ".join(f"--{k} {v}" for k, v in pairs),
]
NOTES = ("I am late", "the food is here", "we meet at {t}", "I am in {p}", "{n} is at home", "the {i} is lost",
         "I will call at {t}", "the shop is open", "we eat at {t}", "{n} went to {p}", "the {i} is broken")


def call(w):
  """A request, a list of functions and the call that fits."""
  rng, n = w.rng, w.names
  function = w.pick(*FUNCTIONS)
  parameters, requests, argument_kinds = FUNCTIONS[function]
  made = {"time": n.time, "person": n.person, "place": n.place, "number": n.number, "digits": lambda: n.digits(5),
          "company": n.company, "animal": lambda: w.pick(*words.ANIMALS),
          "note": lambda: w.pick(*NOTES).format(t=n.time(), p=n.place(), n=n.person(), i=w.pick(*words.ITEMS)),
          "money": lambda: w.pick("dollars", "pounds", "yen", "francs", "pesos", "crowns", "rupees"),
          "item": lambda: w.pick(*words.ITEMS), "colour": lambda: w.pick(*words.COLOURS), "food": lambda: w.pick(*words.FOODS)}
  arguments = [made[kind]() for kind in argument_kinds]
  shown = {f: FUNCTIONS[f][0] for f in rng.sample(list(FUNCTIONS), w.count(0, 3))}
  if rng.random() < 0.3:  # names that mean nothing: with a single function they are read off the list
    function, shown = identifier(w), {}
    if rng.random() < 0.5:
      parameters = tuple(dict.fromkeys(identifier(w) for _ in parameters))
      parameters = parameters if len(parameters) == len(arguments) else FUNCTIONS["mail"][0][:len(arguments)]
  elif rng.random() < 0.5:  # names that say what the function does, as APIs have them
    function = f"{w.pick(*VERBS)}_{function}"
    shown = {f"{w.pick(*VERBS)}_{f}" if rng.random() < 0.7 else f: p for f, p in shown.items()}
  shown[function] = parameters
  order_shown = rng.sample(list(shown), len(shown))
  listing = w.pick(", ", "; ", "\n").join(f"{f}({', '.join(shown[f])})" for f in order_shown)
  request = w.pick(*requests).format(*arguments)
  answer = rng.choice(CALLS)(function, list(zip(parameters, arguments)))
  return w.ask(w.pick("Functions: ", "Use one: ", "You can do: ") + listing, request, answer)


# --- topics ---------------------------------------------------------------------------------------

# What people write about; sentences of one topic share words, the label of a topic changes from row to row.
TOPICS = {
    "cash": ("I want my money back.", "they returned the money.", "he got a refund.", "the refund is not here.", "give back what I paid.",
             "my payment was returned.", "we ask for a refund.", "she paid and wants the money."),
    "post": ("the parcel is late.", "my package was shipped.", "the courier came with the parcel.", "where is the delivery?", "they track the package.",
             "we are waiting for the parcel.", "it will arrive soon.", "the box was delivered."),
    "keys": ("I forgot the password.", "he cannot log in.", "the account is locked.", "reset the login.", "she needs a new password.",
             "sign in to the account.", "unlock it please.", "the password was wrong."),
    "bills": ("the invoice is wrong.", "they charged the card twice.", "the bill is too high.", "a strange fee is on the bill.", "I was charged too much.",
              "send a copy of the invoice.", "explain the charge.", "we pay the bill."),
    "stop": ("cancel it please.", "I changed my mind.", "it was a mistake.", "stop the order.", "we do not need it any more.",
             "I no longer want it.", "can I still cancel?", "they cancelled the order."),
    "harm": ("it is broken.", "there is a crack.", "it arrived damaged.", "a part fell off.", "it does not work.",
             "it has a scratch.", "the glass cracked.", "it stopped working."),
    "hours": ("when do you open?", "the shop is closed.", "we close at noon.", "the store is open today.", "until when are you open?",
              "the hours of the shop changed.", "they open early.", "it closes late."),
    "goods": ("it is sold out.", "do you have it in stock?", "it is available in blue.", "we sell a bigger one.", "is there a smaller one?",
              "none are left.", "which colours do you have?", "I am looking for a green one."),
    "sky": ("it rains all day.", "the sun is bright.", "snow fell last night.", "the wind is strong.", "it is cold and wet.", "dark clouds came."),
    "games": ("our team won the match.", "she runs fast.", "he scored a goal.", "they play tennis.", "the race was long.", "the players are tired."),
    "food": ("the soup is hot.", "we bake bread.", "dinner is ready.", "she cooks rice.", "the cake is sweet.", "he eats an apple."),
    "music": ("she plays the guitar.", "the song is loud.", "they sing at night.", "the band has a new album.", "he likes the drum.", "a quiet tune."),
    "health": ("my head hurts.", "the doctor came.", "she has a fever.", "take the pills.", "he broke a leg.", "the nurse helps."),
    "travel": ("the train leaves soon.", "we fly at noon.", "the hotel is full.", "pack the bags.", "the ship sails.", "a long road trip."),
    "school": ("the teacher reads.", "we learn to write.", "the test was hard.", "open your books.", "the class is over.", "she studies a lot."),
    "farm": ("the cows eat grass.", "we plant beans.", "the goat is hungry.", "milk the cow.", "the field is green.", "the hens lay eggs."),
}


def topic_sentence(w, topic):
  opener = w.pick("", "", "", "hello, ", "please note: ", "listen, ", f"it is {w.names.person()}. ", f"on {w.pick(*words.DAYS)}: ", "sorry, ")
  text = opener + w.pick(*TOPICS[topic]) + w.pick("", "", " thanks!", f" it is about the {w.thing()}.", f" yours, {w.names.person()}")
  return text[0].upper() + text[1:]


def same_topic(w):
  """Several messages on one topic: what sentences of a topic have in common."""
  topic = w.pick(*TOPICS)
  return {"text": w.pick(" ", "\n").join(topic_sentence(w, topic) for _ in range(w.count(2, 4)))}


def topic_label(w):
  """A message under a topic of a given list."""
  shown = w.rng.sample(list(TOPICS), w.count(2, 5))
  topic = w.pick(*shown)
  return w.ask(w.pick("Topics: ", "Choose: ", "Sort under: ") + ", ".join(shown), topic_sentence(w, topic), w.pick(topic, topic, f"topic {topic}"))


def labelled_examples(w):
  """Labels that mean nothing outside this row: they are learned from its examples."""
  topics = w.rng.sample(list(TOPICS), 2)
  label = {topic: w.names.word().lower() for topic in topics}
  mark = w.pick("{} -> {}", "{} = {}", "{} [{}]", "{} ({})")
  order_of = topics + [w.pick(*topics) for _ in range(w.count(1, 5))]
  return {"text": "\n".join(mark.format(topic_sentence(w, t), label[t]) for t in order_of)}


# How often each kind of row is drawn: copying first, and all along.
MIX = ((repeat, 5), (quoted_copy, 2), (pieces, 2), (look_up, 5), (line_number, 2), (story, 2), (question, 6), (fields, 6), (kinds, 2),
       (kinds_in_lines, 4), (order, 4), (call, 8), (same_topic, 2), (topic_label, 3), (labelled_examples, 1))


def plain_tokens(tokenizer):
  """The tokens of tokenizer.json that are printable ASCII, as text; byte-level BPE writes a space as Ġ."""
  vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
  texts = [token.replace("\u0120", " ") for token in vocabulary]
  return [text for text in texts if text.isascii() and text.isprintable() and text.strip() and "<|" not in text]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rows", type=int, default=600_000)
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--level", type=float, default=0.0, help="how long and nested the first rows are, 0 to 1")
  parser.add_argument("--tokenizer", type=pathlib.Path,
                      default=pathlib.Path(__file__).parent.parent / "base/luthier-tiny/tokenizer.json")
  options = parser.parse_args()
  writer = Writer(options.seed, plain_tokens(options.tokenizer))
  makers, weights = zip(*MIX)
  for row in range(options.rows):
    writer.level = max(options.level, min(1.0, 2.0 * row / options.rows))
    made = writer.rng.choices(makers, weights)[0](writer)
    sys.stdout.write(json.dumps(made, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
