"""Writes the five example tasks: <out>/<task>/{train,validation,test}.jsonl.

Every row is one chat: a system message that names the task, a user message and the answer. Rows of the
test file use phrasings (the `test` lists below) and names (see words.py) that no other row uses;
validation rows use training phrasings with names of their own.

  python3 examples/generate/tasks.py --out examples/tasks
"""

import argparse
import json
import pathlib
import random

import words

ROWS = {"train": 1200, "validation": 100, "test": 200}


def chat(system, user, assistant):
  return {"messages": [{"role": "system", "content": system},
                       {"role": "user", "content": user},
                       {"role": "assistant", "content": assistant}]}


def phrasings(pools, split):
  return pools["test" if split == "test" else "train"]


# --- classification: which intent does a customer's message have? -------------------------------

OPENERS = {
    "train": ["", "", "", "Hello, ", "Hi, ", "Good morning, ", "Please help: ", "Hi there, ",
              "This is {name}. ", "Dear team, ", "Quick question: ", "Order {code}: "],
    "test": ["", "", "Hey, ", "Good evening, ", "My name is {name}. ", "A question: ",
             "About order {code}: "],
}
CLOSERS = {
    "train": ["", "", "", " Thanks!", " Thank you.", " Please reply soon.", " Best, {name}",
              " Can you help?"],
    "test": ["", "", " Many thanks!", " Please answer today.", " Yours, {name}",
             " Could you help me?"],
}
INTENTS = {
    "money_back": {
        "train": ["I want my money back.", "please refund my payment.", "how do I get a refund?",
                  "I would like a refund for the {item}.", "you should return my money.",
                  "can I get my money back for the {item}?", "I am asking for a refund.",
                  "when will my refund arrive?", "I sent the {item} back and want my money.",
                  "refund the {item} please.", "give me back the money for the {item}.",
                  "the money was not returned to me."],
        "test": ["I need a refund.", "please give me my money back.",
                 "could I have a refund on the {item}?", "I want the money for the {item} back.",
                 "my refund is not here yet.", "please return the money I paid."],
    },
    "delivery_status": {
        "train": ["where is my parcel?", "my package has not arrived.", "when will the {item} arrive?",
                  "the delivery is late.", "I am still waiting for my parcel.",
                  "has the {item} been shipped?", "can you track my package?",
                  "the courier did not come.", "how long does the delivery take?",
                  "my {item} should have been delivered on {day}.", "when do you ship the {item}?",
                  "the parcel is late again."],
        "test": ["my parcel is not here yet.", "where is the {item} that you shipped?",
                 "is the delivery of my {item} late?", "I am waiting for the courier.",
                 "please track the parcel with the {item}.", "when will my package be delivered?"],
    },
    "account_access": {
        "train": ["I forgot my password.", "I cannot log in.", "my account is locked.",
                  "the login does not work.", "how do I reset my password?",
                  "please unlock my account.", "my password is wrong.",
                  "I cannot sign in to my account.", "the site rejects my password.",
                  "I lost the password of my account.", "my login fails since {day}.",
                  "please send me a new password."],
        "test": ["I need a new password.", "my login is locked.", "I cannot get into my account.",
                 "please reset the login of my account.", "the password does not work on {day}.",
                 "how can I log in again?"],
    },
    "billing_problem": {
        "train": ["my invoice is wrong.", "why was I charged twice?", "I do not understand the bill.",
                  "please send me the invoice.", "there is a strange charge on my bill.",
                  "the invoice for the {item} is missing.", "my card was charged {number} euros.",
                  "the bill is too high.", "can you correct the invoice?",
                  "what is the fee on my bill?", "I was charged too much for the {item}.",
                  "I need a copy of the bill."],
        "test": ["the bill for the {item} is wrong.", "you charged my card twice.",
                 "where is the invoice for my {item}?", "why is there a fee on the invoice?",
                 "I was charged {number} euros too much.", "please explain my bill."],
    },
    "cancel_order": {
        "train": ["please cancel my order.", "I want to cancel the {item}.", "stop my order.",
                  "I do not want the {item} any more.", "how can I cancel?",
                  "cancel everything I ordered on {day}.", "I changed my mind about the {item}.",
                  "I ordered the {item} by mistake.", "can I still cancel the order?",
                  "please stop the order of the {item}.", "I no longer need the {item}, cancel it.",
                  "the order of {day} was a mistake, stop it."],
        "test": ["I would like to cancel my order.", "please cancel the {item}, it was a mistake.",
                 "stop the order I made on {day}.", "I changed my mind, cancel it.",
                 "I do not need the {item} any more.", "can you cancel what I ordered?"],
    },
    "damaged_item": {
        "train": ["the {item} is broken.", "my {item} arrived damaged.", "the {item} does not work.",
                  "there is a crack in the {item}.", "I got a broken {item}.",
                  "the {item} fell apart.", "one part of the {item} is damaged.",
                  "the {item} stopped working on {day}.", "the box was open and the {item} cracked.",
                  "the new {item} has a scratch.", "your {item} broke after {number} days.",
                  "the {item} came with a scratch and a crack."],
        "test": ["the {item} I got is damaged.", "my {item} has a crack.", "a broken {item} arrived.",
                 "the {item} broke on {day}.", "there is a scratch on my {item}.",
                 "the {item} is cracked and does not work."],
    },
    "opening_hours": {
        "train": ["when do you open?", "are you open on {day}?", "what are your opening hours?",
                  "until when is the shop open?", "do you close at noon?",
                  "when does the shop in {place} close?", "is the store open today?",
                  "at what time do you open on {day}?", "are you closed on {day}?",
                  "what time does the store close?", "how long are you open today?",
                  "is the shop in {place} closed now?"],
        "test": ["when does the store open?", "is the shop open on {day}?",
                 "what are the hours in {place}?", "do you close early on {day}?",
                 "until what time are you open?", "are you open now?"],
    },
    "product_stock": {
        "train": ["do you have the {item} in stock?", "is the {item} available?",
                  "do you sell the {item} in {colour}?", "is there a {colour} {item}?",
                  "when is the {item} back in stock?", "how many of the {item} are left?",
                  "can I buy the {item} in {place}?", "is the {item} sold out?",
                  "do you also have a bigger {item}?", "which colours does the {item} have?",
                  "I am looking for a {colour} {item}.", "is a smaller {item} available?"],
        "test": ["is the {colour} {item} in stock?", "do you sell a bigger {item}?",
                 "is the {item} still available in {place}?", "are there any of the {item} left?",
                 "do you have a {colour} {item}?", "I am looking for a smaller {item}."],
    },
}


def classification(rng, names, split):
  intent = rng.choice(list(INTENTS))
  text = (rng.choice(phrasings(OPENERS, split)) + rng.choice(phrasings(INTENTS[intent], split)) +
          rng.choice(phrasings(CLOSERS, split)))
  text = text.format(name=names.word(), code=names.code(), day=rng.choice(words.DAYS),
                     item=rng.choice(words.TASK_ITEMS if split == "test" else words.ITEMS),
                     number=names.number(), place=names.place(), colour=rng.choice(words.COLOURS))
  return chat("Find the intent.", text[0].upper() + text[1:], intent)


# --- ner: people, places and organisations in a sentence ----------------------------------------

# Entities are listed in the order of the text: P person, L place, O organisation.
NER = {
    "train": ["{P} met {P} in {L}.", "{P} works for {O}.", "{P} moved from {L} to {L}.",
              "{O} opened an office in {L}.", "{O} named {P} as its new head.",
              "On {day} {P} flew to {L}.", "{P} of {O} spoke in {L}.",
              "The mayor of {L} thanked {P}.", "{O} bought {O} last year.",
              "{P} was born in {L} and lives in {L}.", "Workers of {O} in {L} stopped work on {day}.",
              "{P} and {P} started {O}.", "The storm reached {L} on {day}.",
              "{O} will build a plant near {L}.", "{P} left {O} and joined {O}.",
              "Police in {L} are looking for {P}.", "In {L}, {P} won the race.",
              "{O} said on {day} that {P} will leave.", "The road from {L} to {L} is closed.",
              "{P} wrote a book about {L}.", "A spokesman for {O} praised {P}.",
              "Shares of {O} fell after {P} left.", "{P}, a {job} from {L}, sued {O}.",
              "Last {day} {O} moved to {L}."],
    "test": ["{P} flew from {L} to {L} on {day}.", "{P} met the head of {O} in {L}.",
             "{O} opened a plant in {L}.", "{P} and {P} live in {L}.",
             "On {day} {O} named {P} as its head.", "{P} left {L} to work for {O}.",
             "The {job} {P} works for {O}.", "{O} bought a plant near {L}.",
             "The mayor of {L} met {P} on {day}.", "{P} won the race in {L}.",
             "Workers of {O} thanked {P}.", "{P} moved to {L} and started {O}."],
}
NER_FIELDS = {"P": "person", "L": "place", "O": "organisation"}


def ner(rng, names, split):
  template = rng.choice(phrasings(NER, split))
  found = {"P": [], "L": [], "O": []}
  text = ""
  for piece in template.replace("}", "{").split("{"):
    if piece in found:
      make = {"P": names.full if rng.random() < 0.4 else names.word, "L": names.place,
              "O": names.company}[piece]
      piece_text = make()
      found[piece].append(piece_text)
      text += piece_text
    elif piece in ("day", "job"):
      text += rng.choice(words.DAYS if piece == "day" else words.JOBS)
    else:
      text += piece
  lines = [f"{NER_FIELDS[kind]}: {', '.join(found[kind])}" for kind in "PLO" if found[kind]]
  return chat("Mark the entities.", text, "\n".join(lines))


# --- extraction: an order as a JSON object --------------------------------------------------------

ORDERS = {
    "train": ["Please send {n} {item} to {name} in {place}.", "{name} from {place} orders {n} {item}.",
              "I am {name} and I need {n} {item} in {place}.", "Ship {n} {item} to {place} for {name}.",
              "{n} {item} for {name}, {place}, please.", "Could you bring {name} {n} {item}? The town is {place}.",
              "My name is {name}. Send {n} {item} to {place}.", "To {place}: {n} {item}, ordered by {name}.",
              "{name} would like to have {n} {item} sent to {place}.", "We need {n} {item} in {place}. Regards, {name}",
              "For {name} in {place} we need {n} {item}.", "{name} here, please deliver {n} {item} to {place}.",
              "Order of {n} {item} by {name} for the shop in {place}.", "The customer {name} in {place} wants {n} {item}.",
              "Deliver to {place}: {n} {item}. Thanks, {name}", "In {place}, {name} is waiting for {n} {item}.",
              "Can {name} get {n} {item} in {place}?", "{place} needs {n} {item}, ask for {name}.",
              "I want {n} {item}. I live in {place} and my name is {name}.", "Hello, {name} in {place} asked for {n} {item}."],
    "test": ["Please deliver {n} {item} to {name} in {place}.", "{name} in {place} needs {n} {item}.",
             "Send {name} from {place} {n} {item}.", "I am {name}, please ship {n} {item} to {place}.",
             "We want {n} {item} in {place}. Thanks, {name}", "{name} would like {n} {item} in {place}.",
             "My name is {name} and I live in {place}. I need {n} {item}.", "For the shop in {place}: {n} {item}, ordered by {name}.",
             "Could you ship {n} {item} to {place}? Regards, {name}", "The customer {name} orders {n} {item} for {place}."],
}


def extraction(rng, names, split):
  item = rng.choice(words.TASK_ITEMS if split == "test" else words.ITEMS)
  quantity = int(names.number())
  item = words.plural(item) if quantity > 1 else item
  item = f"{rng.choice(words.COLOURS)} {item}" if rng.random() < 0.4 else item
  name = names.full() if rng.random() < 0.3 else names.word()
  order = {"customer": name, "city": names.place(), "item": item, "quantity": quantity}
  text = rng.choice(phrasings(ORDERS, split)).format(n=order["quantity"], item=item, name=name,
                                                     place=order["city"])
  return chat("Read the order.", text, json.dumps(order))


# --- qa: the answer to a question, out of a passage ------------------------------------------------

# Each kind of fact: how a sentence may say it, how a question may ask for it, who answers.
FACTS = {
    "train": [
        (["{s} lives in {a}", "{s} has a house in {a}"], ["Where does {s} live?", "In which town does {s} live?"], "place"),
        (["{s} works for {a}", "{s} has a job at {a}"], ["Who does {s} work for?", "Where does {s} work?"], "company"),
        (["{s} is married to {a}", "{s} is the wife of {a}"], ["Who is {s} married to?", "Who is the partner of {s}?"], "person"),
        (["{s} was born in {a}", "{s} comes from {a}"], ["Where was {s} born?", "Where does {s} come from?"], "place"),
        (["{s} called {a} on the phone", "{s} phoned {a}"], ["Who did {s} call?", "Who did {s} phone?"], "person"),
        (["{s} leads {a}", "{s} is the head of {a}"], ["What does {s} lead?", "Which company does {s} lead?"], "company"),
        (["{s} has a {animal} called {a}", "the {animal} of {s} is called {a}"], ["What is the {animal} of {s} called?", "Which name does the {animal} of {s} have?"], "person"),
        (["{s} drove to {a}", "{s} went to {a} by car"], ["Where did {s} drive?", "Which town did {s} drive to?"], "place"),
        (["{s} wakes up at {a}", "{s} gets up at {a}"], ["When does {s} wake up?", "At what time does {s} get up?"], "time"),
        (["{s} owns {a} books", "{s} has {a} books"], ["How many books does {s} own?", "How many books does {s} have?"], "number"),
    ],
    "test": [
        (["{s} has a flat in {a}", "the home of {s} is in {a}"], ["In which town is the home of {s}?", "Where is the house of {s}?"], "place"),
        (["{s} is working for {a}"], ["Which company does {s} work for?", "At which company is {s} working?"], "company"),
        (["{s} is the husband of {a}"], ["Who is the wife of {s}?", "Who did {s} marry?"], "person"),
        (["the birth town of {s} is {a}"], ["In which town was {s} born?", "Which town does {s} come from?"], "place"),
        (["{s} had a call with {a}"], ["Who did {s} have on the phone?", "Who did {s} speak to on the phone?"], "person"),
        (["the {animal} of {s} has the name {a}"], ["What is the name of the {animal} of {s}?", "How is the {animal} of {s} called?"], "person"),
        (["{s} took the car to {a}"], ["Where did {s} go by car?", "To which town did {s} drive?"], "place"),
        (["the day of {s} starts at {a}"], ["When does {s} get up?", "When does the day of {s} start?"], "time"),
        (["there are {a} books in the home of {s}"], ["How many books are in the home of {s}?", "What number of books does {s} have?"], "number"),
    ],
}


def answer_value(names, kind):
  return {"place": names.place, "company": names.company, "person": names.word, "time": names.time,
          "number": names.number}[kind]()


def qa(rng, names, split):
  # Facts whose answers are of different kinds: what the question asks for decides.
  facts, kinds = [], set()
  for fact in rng.sample(phrasings(FACTS, split), len(phrasings(FACTS, split))):
    if fact[2] not in kinds and len(facts) < 3:
      facts.append(fact)
      kinds.add(fact[2])
  facts = facts[:rng.randint(2, 3)]
  subjects = [names.word() for _ in facts]
  animal = rng.choice(words.ANIMALS)
  values = [answer_value(names, kind) for _, _, kind in facts]
  sentences = []
  for (says, _, _), subject, value in zip(facts, subjects, values):
    sentence = rng.choice(says).format(s=subject, a=value, animal=animal)
    sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
  asked = rng.randrange(len(facts))
  question = rng.choice(facts[asked][1]).format(s=subjects[asked], animal=animal)
  return chat("Answer in brackets.", " ".join(sentences) + "\n" + question, f"[{values[asked]}]")


# --- tool calling: one call as a JSON object ------------------------------------------------------

TOOLS = {
    "set_alarm": (["time"], {
        "train": ["Wake me at {time}.", "Set an alarm for {time}.", "I must get up at {time}.", "Please set the alarm to {time}.",
                  "Alarm at {time}, please.", "Ring the alarm at {time}."],
        "test": ["Please wake me up at {time}.", "I need an alarm at {time}.", "Can you set the alarm for {time}?"]}),
    "send_message": (["to", "text"], {
        "train": ["Tell {name} that {text}.", "Send {name} a message: {text}.", "Write to {name} that {text}.",
                  "Let {name} know that {text}.", "Message {name}: {text}.", "Text {name} that {text}."],
        "test": ["Please tell {name} that {text}.", "Write {name} a message: {text}.", "Send a text to {name}: {text}."]}),
    "book_train": (["origin", "destination"], {
        "train": ["I need a train from {a} to {b}.", "Book a train ticket from {a} to {b}.", "Get me a train to {b} from {a}.",
                  "Buy a rail ticket from {a} to {b}.", "I want to go by train from {a} to {b}.", "One ticket from {a} to {b}, please."],
        "test": ["Please book the train from {a} to {b}.", "I would like a rail ticket from {a} to {b}.", "Buy me a ticket for the train from {a} to {b}."]}),
    "get_weather": (["city"], {
        "train": ["How is the weather in {a}?", "Will it rain in {a}?", "Is it sunny in {a}?", "Tell me the weather in {a}.",
                  "Does it snow in {a} today?", "What is the weather like in {a}?"],
        "test": ["Is there rain in {a} today?", "Will it be sunny in {a}?", "Show me the weather of {a}."]}),
    "play_music": (["artist"], {
        "train": ["Play a song by {name}.", "I want to hear {name}.", "Play music by {name}.", "Put on some {name}.",
                  "Start the album by {name}.", "Let me listen to {name}."],
        "test": ["Please play something by {name}.", "I want to listen to a song by {name}.", "Put on the album by {name}."]}),
    "convert_money": (["amount", "currency"], {
        "train": ["How much is {n} in {money}?", "Convert {n} euros to {money}.", "Change {n} euros into {money}.",
                  "What are {n} euros in {money}?", "I want {money} for {n} euros.", "Exchange {n} euros for {money}."],
        "test": ["How many {money} are {n} euros?", "Please change {n} euros to {money}.", "Convert {n} into {money}."]}),
    "add_contact": (["name", "phone"], {
        "train": ["Save {name} with the number {phone}.", "The phone number of {name} is {phone}, save it.", "Add {name} to my contacts: {phone}.",
                  "New contact {name}, {phone}.", "Store the number {phone} for {name}.", "Remember the phone number {phone} of {name}."],
        "test": ["Please save the number {phone} for {name}.", "Add a new contact: {name}, {phone}.", "Store {name} in my contacts with {phone}."]}),
    "find_shop": (["kind", "city"], {
        "train": ["Where can I buy a {item} in {a}?", "Find a shop for a {item} in {a}.", "Who sells a {item} in {a}?",
                  "I look for a {item} shop in {a}.", "Which store in {a} has a {item}?", "Show me {item} shops in {a}."],
        "test": ["Find me a {item} shop in {a}.", "Which shop in {a} sells a {item}?", "Where in {a} can I find a {item}?"]}),
}
TEXTS = {"train": ["I am late", "the food is ready", "we meet at {time}", "the train is late", "I am at home",
                   "{name2} is here", "the car is broken", "we go to {b}", "I will call at {time}",
                   "the shop is closed", "dinner is at {time}", "I bought a {item}"],
         "test": ["I am in {b}", "the {item} is broken", "we eat at {time}", "{name2} is late",
                  "the shop is open", "I will be home at {time}"]}
MONEY = {"train": ["dollars", "pounds", "yen", "francs", "rubles", "pesos"], "test": ["crowns", "rupees", "pounds", "yen"]}


def tool_calling(rng, names, split):
  values = {"time": names.time(), "name": names.word(), "name2": names.word(), "a": names.place(),
            "b": names.place(), "n": int(names.number()), "money": rng.choice(phrasings(MONEY, split)),
            "phone": names.digits(5), "item": rng.choice(words.TASK_ITEMS if split == "test" else words.ITEMS)}
  values["text"] = rng.choice(phrasings(TEXTS, split)).format(**values)
  tool = rng.choice(list(TOOLS))
  parameters, pools = TOOLS[tool]
  source = {"time": "time", "to": "name", "text": "text", "origin": "a", "destination": "b", "city": "a",
            "artist": "name", "amount": "n", "currency": "money", "name": "name", "phone": "phone", "kind": "item"}
  call = {"name": tool, "arguments": {p: values[source[p]] for p in parameters}}
  offered = rng.sample([t for t in TOOLS if t != tool], 2) + [tool]
  rng.shuffle(offered)
  system = "Tools: " + ", ".join(f"{t}({', '.join(TOOLS[t][0])})" for t in offered)
  return chat(system, rng.choice(phrasings(pools, split)).format(**values), json.dumps(call))


TASKS = {"classification": classification, "ner": ner, "extraction": extraction, "qa": qa,
         "tool_calling": tool_calling}


def rows(task, split, seed):
  """Distinct rows of one file; user messages do not repeat within it."""
  rng = random.Random(f"{task} {split} {seed}")
  names = words.Names(rng, split)
  seen, result = set(), []
  while len(result) < ROWS[split]:
    row = TASKS[task](rng, names, split)
    user = row["messages"][1]["content"]
    if user not in seen:
      seen.add(user)
      result.append(row)
  return result


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--seed", type=int, default=1)
  options = parser.parse_args()
  for task in TASKS:
    folder = options.out / task
    folder.mkdir(parents=True, exist_ok=True)
    for split in words.SPLITS:
      with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
        for row in rows(task, split, options.seed):
          file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
