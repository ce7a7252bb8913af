"""Words, made-up names and their split: what every generator of this folder draws from.

Names are built from syllables, so there are far more of them than any model could memorise: a model
that answers with one of them must have copied it. A name belongs to exactly one split, decided by its
CRC: names of the `validation` and `test` splits occur neither in the pre-training text nor in a
training row.
"""

import zlib

STARTS = ("Mar Tor Vel Kan Bri Dov Sel Har Lun Pev Zan Fil Gor Ris Nal Wex Jor Tam Cal Os Ul Em Ar "
          "Quen Bel Dra Sto Kip Lor Mek Nib Pol Rud Sha Tib Vor Yel Zim Hol Gan Fen Dax Cor Bas Al "
          "En Il Or Tri Sva Kro Bla Gre Plo Ska Thu Wil Yar Zed Mun Jas Hek Rov Lam Pan Tes Vik Nor "
          "Dul Kel Mos Bor Fal Ger Hin Jul Kas Leb Mir Nov").split()
MIDDLES = "a i o ve la ri do ma ne to si ka lo mi ru te va ni ba de".split()
ENDS = ("lo ra vin dak mer sko tel nia bo rix dan lia wen go tas ver min ko lus fa gar zo pen ril "
        "sa don ki rek mo tha van ned ja lin bel cu sten ya vo mar dis rok ley hna tor ne ska pol "
        "rin bur kai dro len fi xa gun tem qua nor shi vel bra").split()
PLACE_ENDS = "ton ford ville burg stad mouth field port haven dale wick berg".split()
COMPANY_ENDS = "Group Bank Labs Motors Foods Media Works Energy Systems Partners".split()

FIRST_NAMES = ("Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Maria Nina Oscar Paul "
               "Rosa Sam Tina Victor Wendy Alice Bob Carol Daniel Eva Felix Helen Ivan Julia Karl "
               "Laura Max Nora Peter Ruth Simon Sofia Tom Vera").split()
CITIES = ("Paris London Berlin Rome Madrid Vienna Oslo Prague Dublin Lisbon Athens Warsaw Boston "
          "Chicago Tokyo Delhi Cairo Lima Sydney Toronto").split()

COLOURS = "red blue green yellow black white brown grey pink purple orange silver".split()
ANIMALS = "dog cat horse bird fish rabbit goat duck sheep cow pig mouse turtle snake fox bear".split()
FOODS = ("bread soup rice pizza salad cake pasta cheese eggs beans fish apples plums honey noodles "
         "butter carrots onions potatoes nuts").split()
DRINKS = "tea coffee milk water juice lemonade cocoa beer wine soda".split()
ITEMS = ("lamp chair table book phone clock mirror shirt jacket bag box pen cup plate ring key bike "
         "camera radio pillow blanket rope ladder hammer brush carpet basket candle kettle helmet "
         "guitar drum tent boots scarf hat").split()
TASK_ITEMS = ("printer drill vase sofa shelf laptop bucket mixer toaster fan heater desk stool jar "
              "speaker saw bench cable tablet charger").split()
# Things of training rows only: with many of them, and with made-up ones, copying is learned and not a list of things.
TRAINING_ITEMS = ("apron anchor bottle broom button cabinet canoe clip coat comb cooker cork couch crate curtain cushion dice dish doll "
                  "door engine filter flag flute fork freezer frame funnel glove grill harp hook hose jug kite knife lens lock magnet "
                  "map mat motor mug nail napkin needle oven paddle pan parasol piano pipe pot purse puzzle racket rake razor robe rug "
                  "saddle sander screen shovel sink skirt sledge socket spade spoon stamp statue stove string sweater swing tap tile "
                  "timer torch towel toy tray tripod trumpet umbrella valve vest violin wallet watch wheel whistle window wire zip").split()
PLURALS = {"scarf": "scarves", "shelf": "shelves", "box": "boxes", "brush": "brushes",
           "bench": "benches", "boots": "boots", "dish": "dishes", "dice": "dice", "couch": "couches", "knife": "knives",
           "torch": "torches", "watch": "watches"}
JOBS = ("teacher doctor baker driver farmer nurse painter singer lawyer cook writer pilot waiter "
        "builder gardener sailor judge plumber dancer tailor").split()
HOBBIES = ("chess tennis football running swimming singing dancing reading fishing cooking painting "
           "hiking cycling skiing climbing sewing").split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November "
          "December").split()
SMALL_NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()
ADJECTIVES = "old new big small quiet happy busy kind clever tall young brave calm nice strange good".split()
FIELD_WORDS = ("name city town place day time colour animal food drink item job hobby price amount "
               "count code number date month owner friend boss team company street room house goal "
               "title topic kind type status level size weight start end from to who where when what "
               "target source value key part note person home work maker buyer seller guest host").split()

SPLITS = ("train", "validation", "test")


def split_of(name):
  """The split that owns `name`: about one name in ten each for validation and test."""
  return {0: "test", 1: "validation"}.get(zlib.crc32(name.lower().encode()) % 10, "train")


def plural(item):
  return PLURALS.get(item, item + "s")


def item(names):
  """A thing that somebody buys or orders. Test rows have things of their own."""
  if names.split == "test":
    return names.rng.choice(TASK_ITEMS)
  made_up = names.rng.random() < 0.4
  return names.word().lower() if made_up else names.rng.choice(ITEMS + TRAINING_ITEMS)


class Names:
  """Draws names of one split with the given `random.Random`."""

  def __init__(self, rng, split="train", real=0.0):
    self.rng = rng
    self.split = split
    self.real = real  # share of ordinary first names and cities; 0 in task rows

  def _made_up(self, ends):
    rng = self.rng
    while True:
      middle = rng.choice(MIDDLES) if rng.random() < 0.25 else ""
      name = rng.choice(STARTS) + middle + rng.choice(ends)
      if split_of(name) == self.split:
        return name

  def word(self):
    return self._made_up(ENDS)

  def person(self):
    if self.rng.random() < self.real:
      return self.rng.choice(FIRST_NAMES)
    return self.word()

  def full(self):
    return f"{self.person()} {self.word()}"

  def place(self):
    if self.rng.random() < self.real:
      return self.rng.choice(CITIES)
    return self._made_up(PLACE_ENDS if self.rng.random() < 0.4 else ENDS)

  def company(self):
    name = self.word()
    return f"{name} {self.rng.choice(COMPANY_ENDS)}" if self.rng.random() < 0.7 else name

  def code(self):
    rng = self.rng
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTVWXZ") for _ in range(rng.randint(1, 2)))
    return letters + rng.choice(["", "-"]) + self.digits(rng.randint(2, 4))

  def digits(self, count):
    rng = self.rng
    return str(rng.randint(1, 9)) + "".join(str(rng.randint(0, 9)) for _ in range(count - 1))

  def number(self):
    return self.digits(self.rng.choice([1, 2, 2, 3]))

  def time(self):
    return f"{self.rng.randint(1, 23)}:{self.rng.choice(['00', '10', '15', '20', '30', '40', '45', '50'])}"

  def date(self):
    return f"{self.rng.randint(1, 28)} {self.rng.choice(MONTHS)}"
