"""Writes the five example tasks: <out>/<task>/{train,validation,test}.jsonl.

Every row is one chat: a system message that names the task, a user message and the answer. A phrasing
writes alternatives as [one|another]. Rows of the test file use phrasings (the `test` lists below) and
names (see words.py) that no other row uses; validation rows use training phrasings with names of their
own.

  python3 examples/generate/tasks.py --out examples/tasks
"""

import argparse
import itertools
import json
import pathlib
import random
import re

import words

ROWS = {"train": 2400, "validation": 100, "test": 200}


ALTERNATIVES = re.compile(r"\[([^\]]*)\]")


def wordings(phrasing):
  """Every text that a phrasing with [one|another] can become."""
  parts = ALTERNATIVES.split(phrasing)
  choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
  return ["".join(chosen) for chosen in itertools.product(*choices)]


def wording(rng, phrasing):
  return ALTERNATIVES.sub(lambda match: rng.choice(match[1].split("|")), phrasing)


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
        "train": ["I [want|need|would like to have] [my|the] money back.", "[please|kindly] refund [my payment|the {item}|what I paid].",
                  "how [do|can|may] I get a refund?", "I would like a refund for the {item}.", "you should [return|give back] my money.",
                  "[can|may] I get my money back for the {item}?", "I am [asking for|waiting for|entitled to] a refund.",
                  "when will [my|the] refund [arrive|come]?", "I sent the {item} back and [want|expect] [my|the] money.",
                  "give me back the [money|payment] for the {item}.", "[the|my] money was not [returned|paid back] to me.",
                  "[where is|what about] [the|my] refund of {number} euros?", "the refund [has not arrived|is late|is missing].",
                  "I returned the {item}, [please refund it|give me the money]."],
        "test": ["I need a refund.", "please give me my money back.", "could I have a refund on the {item}?",
                 "I want the money for the {item} back.", "my refund is not here yet.", "please return the money I paid."],
    },
    "delivery_status": {
        "train": ["where is my [parcel|package|delivery]?", "[my|the] [package|parcel] [has not arrived|did not come|is not here].",
                  "when will the {item} [arrive|come|get here]?", "[the|my] delivery is [late|delayed].",
                  "I am [still |]waiting for [my|the] [parcel|package|{item}].", "has the {item} been [shipped|delivered|sent]?",
                  "[can|could] you track [my|the] [package|parcel]?", "the courier [did not come|is late|was not here].",
                  "how long does the delivery [take|of the {item} take]?", "my {item} should have been delivered on {day}.",
                  "when [do|will] you ship the {item}?", "[the|my] parcel is [late again|not here].",
                  "please [track|look for] [the delivery|my package]."],
        "test": ["my parcel is not here yet.", "where is the {item} that you shipped?", "is the delivery of my {item} late?",
                 "I am waiting for the courier.", "please track the parcel with the {item}.", "when will my package be delivered?"],
    },
    "account_access": {
        "train": ["I [forgot|lost|do not know] my password.", "I cannot [log in|sign in|get in].", "my [account|login] is [locked|blocked].",
                  "[the|my] login does not work.", "how [do|can] I [reset|change] my password?", "please [unlock|open] my account.",
                  "my password is [wrong|not accepted].", "I cannot [sign in to|log in to|get into] [my account|the site].",
                  "the site rejects my [password|login].", "I [lost|need] the password of my account.", "my login fails since {day}.",
                  "please [send me|give me] a new password[| for my account].", "[reset|change] [my password|the login] please.",
                  "[my|the] password [does not work|is wrong] since {day}."],
        "test": ["I need a new password.", "my login is locked again.", "I am locked out of my account.",
                 "please reset the login of my account.", "the password does not work on {day}.", "how can I log in again?"],
    },
    "billing_problem": {
        "train": ["[my|the] [invoice|bill] is wrong.", "why was [I|my card] charged twice?", "I do not understand the [bill|invoice].",
                  "please send me the [invoice|bill].", "there is a [strange|wrong|second] [charge|fee] on [my|the] [bill|invoice].",
                  "the [invoice|bill] for the {item} is [missing|not here].", "my card was charged {number} euros[| too much].",
                  "the [bill|invoice] is too high.", "[can|could] you [correct|check|explain] the [invoice|bill]?",
                  "what is the [fee|charge] on [my bill|the invoice]?", "I was charged [too much|twice] for the {item}.",
                  "I need a copy of the [bill|invoice].", "you charged [me|us] [twice|too much]."],
        "test": ["the bill for the {item} is wrong.", "you charged my card twice.", "where is the invoice for my {item}?",
                 "why is there a fee on the invoice?", "I was charged {number} euros too much.", "please explain my bill."],
    },
    "cancel_order": {
        "train": ["[please|kindly] cancel [my|the] order.", "I [want|wish|need] to cancel [the {item}|my order].", "stop [my|the] order.",
                  "I do not [want|need] the {item} [any more|now].", "how can I cancel[| my order| the {item}]?",
                  "cancel [everything|all that|the {item}] I ordered on {day}.", "I changed my mind about the {item}.",
                  "I ordered the {item} by mistake.", "[can|may] I [still |]cancel the order?",
                  "please stop the order of [the {item}|{day}].", "I no longer [need|want] the {item}, cancel it.",
                  "the order of {day} was a mistake, [stop|cancel] it.", "I changed my mind, [stop it|do not send it|stop the order]."],
        "test": ["I would like to cancel my order.", "please cancel the {item}, it was a mistake.", "stop the order I made on {day}.",
                 "I changed my mind, cancel it.", "I do not need my {item} any more.", "can you cancel what I ordered?"],
    },
    "damaged_item": {
        "train": ["the {item} is [broken|cracked|damaged].", "[my|the|our] {item} [arrived|came] [damaged|broken|cracked].",
                  "the {item} does not [work|turn on].", "there is a [crack|scratch|hole] in the {item}.", "I got a [broken|damaged] {item}.",
                  "the {item} [fell apart|broke].", "[one|a] part of the {item} is [damaged|broken].", "the {item} stopped working[| on {day}].",
                  "the box was open and the {item} [cracked|broken].", "[the|my] new {item} has a [scratch|crack].",
                  "your {item} broke after {number} days.", "the {item} came with a scratch and a crack."],
        "test": ["the {item} I got is damaged.", "my {item} has a crack.", "a broken {item} arrived.", "the {item} broke on {day}.",
                 "there is a scratch on my {item}.", "the {item} is cracked and does not work."],
    },
    "opening_hours": {
        "train": ["when do you [open|close]?", "are you [open|closed] on {day}?", "what are your [opening hours|hours][| on {day}]?",
                  "until [when|what time] is the [shop|store] open?", "do you close [at noon|early|late]?",
                  "when does the [shop|store] in {place} [close|open]?", "is the [store|shop] open [today|now|at noon]?",
                  "at what time do you [open|close] on {day}?", "what time does the [store|shop] [close|open]?",
                  "how long are you open [today|on {day}]?", "is the [shop|store] in {place} [closed|open] now?",
                  "[tell me|what are] the opening hours in {place}."],
        "test": ["when does the store open?", "is the shop open on {day}?", "what are the hours in {place}?", "do you close early on {day}?",
                 "until what time are you open?", "are you open now?"],
    },
    "product_stock": {
        "train": ["do you have [the|a] {item} in stock?", "is the {item} [available|in stock][| in {place}]?",
                  "do you [sell|have] the {item} in {colour}?", "is there a {colour} {item}?", "when is the {item} back in stock?",
                  "how many of the {item} are left?", "can I buy [the|a] {item} in {place}?", "is the [{item}|{colour} {item}] sold out?",
                  "do you [also |]have a [bigger|smaller] {item}?", "which colours does the {item} have?",
                  "I am looking for a [{colour}|bigger|cheaper] {item}.", "is a [smaller|bigger|{colour}] {item} available?",
                  "do you sell [a {colour} {item}|a smaller {item}]?"],
        "test": ["is the {colour} {item} in stock?", "do you sell a bigger {item}?", "is the {item} still available in {place}?",
                 "are there any of the {item} left?", "do you have a {colour} {item}?", "I am looking for a smaller {item}."],
    },
}


def classification(rng, names, split):
  intent = rng.choice(list(INTENTS))
  text = (rng.choice(phrasings(OPENERS, split)) + wording(rng, rng.choice(phrasings(INTENTS[intent], split))) +
          rng.choice(phrasings(CLOSERS, split)))
  text = text.format(name=names.word(), code=names.code(), day=rng.choice(words.DAYS),
                     item=words.item(names),
                     number=names.number(), place=names.place(), colour=rng.choice(words.COLOURS))
  return chat("Find the intent.", text[0].upper() + text[1:], intent)


# --- ner: people, places and organisations in a sentence ----------------------------------------

# Entities are listed in the order of the text: P person, L place, O organisation.
NER = {
    "train": ["{P} [met|saw|visited|called] {P} in {L}.", "{P} [works|worked|speaks] for {O}.", "{P} moved from {L} to {L}.",
              "{O} [opened|closed|sold] an office in {L}.", "{O} [named|chose] {P} as its [new head|head|new {job}].",
              "On {day} {P} [flew|drove|went] to {L}.", "{P} of {O} [spoke|was seen] in {L}.",
              "The mayor of {L} [thanked|called|praised] {P}.", "{O} bought {O} [last year|on {day}].",
              "{P} was born in {L} and [lives|works] in {L}.", "Workers of {O} in {L} stopped work on {day}.",
              "{P} and {P} [started|own|left] {O}.", "The [storm|train|news] reached {L} on {day}.",
              "{O} will build a [plant|house|shop] near {L}.", "{P} left {O} and joined {O}.",
              "Police in {L} are looking for {P}.", "In {L}, {P} won the [race|match].",
              "{O} said on {day} that {P} will [leave|stay].", "The road from {L} to {L} is [closed|open].",
              "{P} wrote a [book|letter] about {L}.", "A spokesman for {O} praised {P}.",
              "Shares of {O} [fell|rose] after {P} left.", "{P}, a {job} from {L}, sued {O}.",
              "[Last|On|Since] {day} {O} [moved|went] to {L}.", "The {job} {P} lives in {L}.", "The {job} {P} left {O}.",
              "{P} and {P} [met|work] in {L}.", "{P} met the [mayor|{job}] of {L}.", "The head of {O} met {P}.",
              "{P} [flew|drove] from {L} to {L}.", "{O} has a plant in {L}.", "{P} moved to {L} on {day}.", "{P} left {L} on {day}.",
              "{P} started {O} in {L}.", "Workers of {O} [met|saw] {P}.", "On {day} {O} bought a [plant|shop]."],
    "test": ["{P} flew from {L} to {L} on {day}.", "{P} met the head of {O} in {L}.", "{O} opened a plant in {L}.",
             "{P} and {P} live in {L}.", "On {day} {O} named {P} as its head.", "{P} left {L} to work for {O}.",
             "The {job} {P} works for {O}.", "{O} bought a plant near {L}.", "The mayor of {L} met {P} on {day}.",
             "{P} won the race in {L}.", "Workers of {O} thanked {P}.", "{P} moved to {L} and started {O}."],
}
NER_FIELDS = {"P": "person", "L": "place", "O": "organisation"}


def ner(rng, names, split):
  template = wording(rng, rng.choice(phrasings(NER, split)))
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
    "train": ["[Please|Kindly] send {n} {item} to {name} in {place}.", "{name} [from|of] {place} orders {n} {item}.",
              "I am {name} and I [need|want] {n} {item} in {place}.", "[Ship|Send|Bring] {n} {item} to {place} for {name}.",
              "{n} {item} for {name}, {place}, please.", "Could you [bring|send] {name} {n} {item}? The town is {place}.",
              "My name is {name}. [Send|Ship|Bring] {n} {item} to {place}.", "To {place}: {n} {item}, ordered by {name}.",
              "{name} would like to have {n} {item} sent to {place}.", "We [need|ordered] {n} {item} in {place}. [Regards|Yours], {name}",
              "For {name} in {place} we need {n} {item}.", "{name} here, please [deliver|send] {n} {item} to {place}.",
              "Order of {n} {item} by {name} for the shop in {place}.", "The customer {name} in {place} wants {n} {item}.",
              "[Deliver|Ship] to {place}: {n} {item}. [Thanks|Regards], {name}", "In {place}, {name} is waiting for {n} {item}.",
              "[Can|Could] {name} get {n} {item} in {place}?", "{place} needs {n} {item}, ask for {name}.",
              "I want {n} {item}. I live in {place} and my name is {name}.", "Hello, {name} in {place} asked for {n} {item}.",
              "{name} [ordered|bought|wants] {n} {item} for {place}.", "I am {name}. [Please send|Bring] {n} {item} to {place}.",
              "For the [house|office] in {place}: {n} {item}, says {name}.", "The customer {name} needs {n} {item} in {place}.",
              "My name is {name} and I live in {place}. [Send|Ship] {n} {item}.", "[Bring|Give] {name} from {place} {n} {item}.",
              "Please [bring|ship] {n} {item} to {place}. [Yours|Thanks], {name}"],
    "test": ["Please deliver {n} {item} to {name} in {place}.", "{name} in {place} needs {n} {item}.",
             "Send {name} from {place} {n} {item}.", "I am {name}, please ship {n} {item} to {place}.",
             "We want {n} {item} in {place}. Thanks, {name}", "{name} would like {n} {item} in {place}.",
             "My name is {name} and I live in {place}. I need {n} {item}.", "For the shop in {place}: {n} {item}, ordered by {name}.",
             "Could you ship {n} {item} to {place}? Regards, {name}", "The customer {name} orders {n} {item} for {place}."],
}


def extraction(rng, names, split):
  item = words.item(names)
  quantity = int(names.number())
  item = words.plural(item) if quantity > 1 else item
  item = f"{rng.choice(words.COLOURS)} {item}" if rng.random() < 0.4 else item
  name = names.full() if rng.random() < 0.3 else names.word()
  order = {"customer": name, "city": names.place(), "item": item, "quantity": quantity}
  text = wording(rng, rng.choice(phrasings(ORDERS, split))).format(n=order["quantity"], item=item, name=name,
                                                                   place=order["city"])
  return chat("Read the order.", text, json.dumps(order))


# --- qa: the answer to a question, out of a passage ------------------------------------------------

# Each kind of fact: how a sentence may say it, how a question may ask for it, who answers.
FACTS = {
    "train": [
        (["{s} [lives|stays|lived] in {a}", "{s} has a [house|room|home] in {a}", "the [house|room|garden] of {s} is [in|near] {a}",
          "the home of {s} is near {a}", "{s} has [a flat|rooms] near {a}"],
         ["Where does {s} live?", "In which town does {s} [live|stay]?", "Where is the [home|room|flat|garden] of {s}?",
          "In which town is the [house|room] of {s}?",
          "Where is the new house of {s}?"], "place"),
        (["{s} [works|worked] for {a}", "{s} has a job at {a}", "{s} is [paid|employed] by {a}"],
         ["Who does {s} work for?", "Where does {s} work?", "Which company [pays|employs] {s}?"], "company"),
        (["{s} is married to {a}", "{s} is the [wife|partner|spouse] of {a}", "{s} married {a}", "{s} is [a friend|the brother] of {a}"],
         ["Who is {s} married to?", "Who is the [partner|husband|spouse|friend] of {s}?", "Who did {s} [meet and marry|marry last year]?",
          "Who is the [new wife|brother] of {s}?"], "person"),
        (["{s} was born in {a}", "{s} [comes|is] from {a}", "the [home town|origin] of {s} is {a}"],
         ["Where was {s} born?", "Where does {s} come from?", "From which town [is|comes] {s}?"], "place"),
        (["{s} called {a} on the phone", "{s} [phoned|called] {a}", "{s} spoke to {a} on the phone",
          "{s} had [a talk|a chat|tea|lunch] with {a}", "{s} was on the phone with {a}"],
         ["Who did {s} [call|phone]?", "Who was called by {s}?", "Who did {s} [talk to|speak with|chat with]?",
          "Who was on the phone with {s}?", "Who did {s} have [tea|a talk|lunch] with?"], "person"),
        (["{s} leads {a}", "{s} is the [head|boss] of {a}"], ["What does {s} lead?", "Which company does {s} lead?"], "company"),
        (["{s} has a {animal} called {a}", "the {animal} of {s} is called {a}", "the name of the {animal} of {s} is {a}"],
         ["What is the {animal} of {s} called?", "Which name does the {animal} of {s} have?"], "person"),
        (["{s} drove to {a}", "{s} went to {a} by car", "{s} [took the train|took the bus] to {a}"],
         ["Where did {s} drive?", "Which town did {s} [drive|go] to?", "Where did {s} go?", "Where did {s} take the [car|bus] to?"], "place"),
        (["{s} [wakes|gets] up at {a}", "the [work|morning] of {s} starts at {a}", "{s} starts the day at {a}"],
         ["When does {s} wake up?", "At what time does {s} [get up|start]?", "When does the [work|morning] of {s} start?",
          "At what time does the day of {s} [begin|start]?"], "time"),
        (["{s} [owns|has|keeps] {a} books", "there are {a} books in the [room|house|flat] of {s}", "the home of {s} has {a} books"],
         ["How many books does {s} [own|have]?", "What is the number of books of {s}?", "How many books are in the [room|house|flat] of {s}?",
          "How many books [stand|lie] in the home of {s}?"], "number"),
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
    sentence = wording(rng, rng.choice(says)).format(s=subject, a=value, animal=animal)
    sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
  asked = rng.randrange(len(facts))
  question = wording(rng, rng.choice(facts[asked][1])).format(s=subjects[asked], animal=animal)
  return chat("Answer in brackets.", " ".join(sentences) + "\n" + question, f"[{values[asked]}]")


# --- tool calling: one call as a JSON object ------------------------------------------------------

TOOLS = {
    "set_alarm": (["time"], {
        "train": ["[|Please ]Wake me at {time}.", "[Set|I want] an alarm for {time}.", "I [must|have to|want to] get up at {time}.",
                  "[Please|Can you] set the alarm to {time}.", "Alarm at {time}, please.", "[Ring|Start] the alarm at {time}.",
                  "Wake me up [at|before] {time}.", "[Make|Give me] an alarm for {time}.", "Can you [wake me|ring] at {time}?"],
        "test": ["Please wake me up at {time}.", "I need an alarm at {time}.", "Can you set the alarm for {time}?"]}),
    "send_message": (["to", "text"], {
        "train": ["Tell {name} that {text}.", "Send {name} [a message|a note|the text]: {text}.", "Write to {name} that {text}.",
                  "Let {name} know that {text}.", "Message {name}: {text}.", "[Text|Inform|Remind] {name} that {text}.",
                  "[Please|Can you] write {name} that {text}.", "[Please|Quickly] inform {name} that {text}.",
                  "[Send|Write] a [message|note] to {name}: {text}."],
        "test": ["Please tell {name} that {text}.", "Write {name} a message: {text}.", "Send a text to {name}: {text}."]}),
    "book_train": (["origin", "destination"], {
        "train": ["I need a train from {a} to {b}.", "[Book|Buy] a train ticket from {a} to {b}.", "Get me a [train|ticket] to {b} from {a}.",
                  "[Buy|Get] a rail ticket from {a} to {b}.", "I want to [go|travel] by train from {a} to {b}.",
                  "[One|A] ticket from {a} to {b}, please.", "[Please|Can you] find a train from {a} to {b}.",
                  "[Book|Get] me the train [from {a} to {b}|to {b} from {a}].", "I would like a [ticket|train] from {a} to {b}.",
                  "Please [buy|get] the ticket from {a} to {b}."],
        "test": ["Please book the train from {a} to {b}.", "I would like a rail ticket from {a} to {b}.", "Buy me a ticket for the train from {a} to {b}."]}),
    "get_weather": (["city"], {
        "train": ["How is the weather in {a}[| today| now]?", "Will it [rain|snow] in {a}[| today]?", "Is it [sunny|cold|warm] in {a}?",
                  "Tell me the weather in {a}.", "Does it [snow|rain] in {a} today?", "What is the weather [like |]in {a}?",
                  "Will there be [sun|snow|wind] in {a}?", "Is there [sun|snow|wind] in {a}?", "[Show|Give] me the weather in {a}.",
                  "[I want|Say] the weather [of|in] {a}."],
        "test": ["Is there rain in {a} today?", "Will it be sunny in {a}?", "Show me the weather of {a}."]}),
    "play_music": (["artist"], {
        "train": ["Play [a song|an album|the songs] by {name}.", "I want to hear {name}.", "Play music [by|of] {name}.", "Put on [some|a song by] {name}.",
                  "Start the album by {name}.", "Let me [listen to|hear] {name}.", "[Please|Can you] play {name}.",
                  "I want to [listen to|hear] [an album|music] by {name}.", "Please [start|put on] [the music|a song] by {name}."],
        "test": ["Please play something by {name}.", "I want to listen to a song by {name}.", "Put on the album by {name}."]}),
    "convert_money": (["amount", "currency"], {
        "train": ["How much is {n} in {money}?", "Convert {n} euros [to|into] {money}.", "[Change|Turn] {n} euros into {money}.",
                  "What are {n} euros in {money}?", "I want {money} for {n} euros.", "Exchange {n} euros for {money}.",
                  "How many {money} [do I get|are there] for {n} euros?", "Please [convert|exchange] {n} euros to {money}.",
                  "[Change|Exchange] {n} [into|to] {money}.", "How many {money} is {n}?"],
        "test": ["How many {money} are {n} euros?", "Please change {n} euros to {money}.", "Convert {n} into {money}."]}),
    "add_contact": (["name", "phone"], {
        "train": ["Save {name} with [the number |the phone number |]{phone}.", "The phone number of {name} is {phone}, [save|store] it.",
                  "Add {name} to my contacts: {phone}.", "New contact {name}, {phone}.", "Store the number {phone} for {name}.",
                  "Remember the phone number {phone} of {name}.", "[Please|Can you] add {name} with {phone}.",
                  "Add the contact {name}: {phone}.", "[Save|Remember] {name} in my contacts, {phone}.",
                  "Please [store|remember] the number {phone} of {name}."],
        "test": ["Please save the number {phone} for {name}.", "Add a new contact: {name}, {phone}.", "Store {name} in my contacts with {phone}."]}),
    "find_shop": (["kind", "city"], {
        "train": ["Where can I [buy|get] a {item} in {a}?", "Find a shop for a {item} in {a}.", "Who sells a {item} in {a}?",
                  "I look for a {item} shop in {a}.", "Which [store|shop] in {a} has a {item}?", "Show me {item} shops in {a}.",
                  "[Find|Show] a {item} shop in {a}.", "[Find|Show] me a {item} store in {a}.", "Where in {a} [is|can I buy] a {item}?",
                  "[Which|What] store in {a} sells a {item}?", "I [want|need] to buy a {item} in {a}."],
        "test": ["Find me a {item} shop in {a}.", "Which shop in {a} sells a {item}?", "Where in {a} can I find a {item}?"]}),
}
TEXTS = {
    "train": ["I am [late|at home|ill|on the way|in the shop]", "the [food|soup|table|coffee] is ready", "we [meet|start|leave|call] at {time}",
              "the [train|bus|{item}] is late", "{name2} is [here|ill|at home|in {b}]", "the [car|{item}] is [broken|here|new|lost]",
              "we [go|drive|travel] to {b}", "I will [call|come|leave|be there|be back] at {time}", "the shop is closed",
              "[dinner|lunch|the game|work] is at {time}", "I [bought|found|lost|need] a {item}", "we are [in|near] {b}",
              "{name2} [bought|has|wants] the {item}", "I will be in {b} at {time}", "he is home at {time}", "{name2} will be late",
              "the door is open"],
    "test": ["I am in {b}", "the {item} is broken now", "we eat at {time}", "{name2} is late", "the shop is open", "I will be home at {time}"]}
MONEY = {"train": ["dollars", "pounds", "yen", "francs", "rubles", "pesos"], "test": ["crowns", "rupees", "pounds", "yen"]}


def tool_calling(rng, names, split):
  values = {"time": names.time(), "name": names.word(), "name2": names.word(), "a": names.place(),
            "b": names.place(), "n": int(names.number()), "money": rng.choice(phrasings(MONEY, split)),
            "phone": names.digits(5), "item": words.item(names)}
  values["text"] = wording(rng, rng.choice(phrasings(TEXTS, split))).format(**values)
  tool = rng.choice(list(TOOLS))
  parameters, pools = TOOLS[tool]
  source = {"time": "time", "to": "name", "text": "text", "origin": "a", "destination": "b", "city": "a",
            "artist": "name", "amount": "n", "currency": "money", "name": "name", "phone": "phone", "kind": "item"}
  call = {"name": tool, "arguments": {p: values[source[p]] for p in parameters}}
  offered = rng.sample([t for t in TOOLS if t != tool], 2) + [tool]
  rng.shuffle(offered)
  system = "Tools: " + ", ".join(f"{t}({', '.join(TOOLS[t][0])})" for t in offered)
  return chat(system, wording(rng, rng.choice(phrasings(pools, split))).format(**values), json.dumps(call))


TASKS = {"classification": classification, "ner": ner, "extraction": extraction, "qa": qa,
         "tool_calling": tool_calling}


# Each pair of pools from which rows of training and test draw: their wordings must not meet.
POOLS = ([INTENTS[intent] for intent in INTENTS] + [NER, ORDERS, TEXTS] + [pools for _, pools in TOOLS.values()] +
         [{split: [text for fact in facts for text in fact[part]] for split, facts in FACTS.items()} for part in (0, 1)])


def check_disjoint():
  for pools in POOLS:
    common = ({text for phrasing in pools["train"] for text in wordings(phrasing)} &
              {text for phrasing in pools["test"] for text in wordings(phrasing)})
    if common:
      raise ValueError(f"wordings of training and of test: {sorted(common)}")


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
  check_disjoint()
  for task in TASKS:
    folder = options.out / task
    folder.mkdir(parents=True, exist_ok=True)
    for split in words.SPLITS:
      with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
        for row in rows(task, split, options.seed):
          file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
