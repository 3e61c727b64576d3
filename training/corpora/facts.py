"""Word tables of the dialogue grammar: what it knows about numbers, days, animals, cities and things at home.

All entries are ours. Every word is in the US lexicons of misaki or follows from one by the rules of `pronounce`.
"""

from __future__ import annotations

# tables read best as short strings, many to a line
# ruff: noqa: SIM905
# fmt: off

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NAMES = (
    "Alice Anna Ben Daniel Edward Emma George Grace Henry James Julia Kate Laura Leo Lucy Mary Nora Oliver Oscar Peter "
    "Rose Sarah Sophie Thomas Victor Walter"
).split()

COLOURS = {
    "carrot": "orange", "cucumber": "green", "crow": "black", "cherry": "red", "flamingo": "pink", "lime": "green",
    "strawberry": "red", "swan": "white", "elephant": "gray", "banana": "yellow", "lemon": "yellow", "tomato": "red",
    "frog": "green", "pig": "pink", "raven": "black", "pumpkin": "orange", "polar bear": "white", "fire truck": "red",
    "plum": "purple", "mouse": "gray", "leaf": "green", "sunflower": "yellow", "violet": "purple", "dolphin": "gray",
}
MASS_COLOURS = {
    "charcoal": "black", "snow": "white", "milk": "white", "grass": "green", "the sky": "blue", "chocolate": "brown",
    "coffee": "brown", "blood": "red", "butter": "yellow", "cotton": "white", "the sea": "blue", "coal": "black",
}
OPPOSITES = (
    "buy sell,poor rich,love hate,closed open,night day,wet dry,empty full,smooth rough,early late,afraid brave,"
    "true false,never always,hot cold,big small,up down,left right,fast slow,happy sad,old young,hard soft,light dark,"
    "loud quiet,high low,long short,strong weak,clean dirty,good bad,first last,inside outside,"
    "over under,yes no,black white,thick thin,wide narrow,near far,win lose,push pull,begin end,laugh cry,"
    "remember forget,sweet sour,cheap expensive,easy difficult,awake asleep,summer winter,friend enemy,question answer"
)
RHYMES = (
    "rose nose,chair bear,boat goat,box fox,sock clock,kite white,hand sand,meal wheel,moon spoon,book cook,cat hat,"
    "dog frog,house mouse,tree bee,star car,night light,ring king,cake lake,rain train,ball wall,day play,red bed,"
    "snow go,time lime,sun fun,head bread,hair pear,blue shoe,sing wing,sea tea,green queen,coat boat,pie sky"
)
PLURALS = {
    "child": "children", "wife": "wives", "tomato": "tomatoes", "dish": "dishes", "hero": "heroes", "knife": "knives",
    "watch": "watches", "leaf": "leaves", "half": "halves", "woman": "women", "story": "stories", "man": "men",
    "mouse": "mice", "goose": "geese", "foot": "feet", "tooth": "teeth", "box": "boxes", "bus": "buses",
    "wolf": "wolves", "baby": "babies", "city": "cities", "potato": "potatoes", "brush": "brushes", "glass": "glasses",
    "lady": "ladies",
    "cat": "cats", "dog": "dogs", "book": "books", "house": "houses", "fox": "foxes", "sheep": "sheep", "fish": "fish",
    "party": "parties", "shelf": "shelves", "berry": "berries", "church": "churches", "person": "people",
}
ANIMAL_SOUNDS = {
    "snake": "hisses", "owl": "hoots", "pig": "oinks", "rooster": "crows", "mouse": "squeaks", "frog": "croaks",
    "wolf": "howls", "cat": "meows", "crow": "caws", "cow": "moos", "pigeon": "coos", "bee": "buzzes",
    "donkey": "brays", "dog": "barks", "lion": "roars", "duck": "quacks", "bird": "sings", "sheep": "bleats",
    "bear": "growls", "horse": "neighs",
}
ANIMAL_HOMES = {
    "crab": "the sea", "frog": "a pond", "rabbit": "a burrow", "dog": "a kennel", "horse": "a stable", "lion": "a den",
    "pig": "a sty", "wolf": "the forest", "spider": "a web", "whale": "the ocean", "bird": "a nest", "bee": "a hive",
    "bear": "a cave", "fish": "the water", "cow": "a barn", "camel": "the desert", "squirrel": "a tree", "fox": "a den",
    "monkey": "the jungle", "duck": "a pond", "sheep": "the meadow", "mouse": "a hole",
}
FOOD_ORIGINS = {
    "yogurt": "milk", "wine": "grapes", "milk": "cows", "salt": "the sea or from mines", "wool": "sheep",
    "peanut butter": "peanuts", "bacon": "pigs", "honey": "bees", "tea": "the leaves of a bush", "ketchup": "tomatoes",
    "olive oil": "olives", "cheese": "milk", "butter": "milk", "bread": "wheat", "flour": "wheat", "paper": "trees",
    "apple juice": "apples", "chocolate": "cocoa beans", "sugar": "sugar cane", "eggs": "hens", "raisins": "grapes",
    "french fries": "potatoes", "popcorn": "corn", "leather": "cows", "silk": "silk worms", "orange juice": "oranges",
}
CAPITALS = {
    "Cuba": "Havana", "Poland": "Warsaw", "Portugal": "Lisbon", "Denmark": "Copenhagen", "Peru": "Lima",
    "Norway": "Oslo", "Italy": "Rome", "France": "Paris", "Austria": "Vienna", "England": "London", "Greece": "Athens",
    "Finland": "Helsinki", "Spain": "Madrid", "Ireland": "Dublin", "Germany": "Berlin", "Egypt": "Cairo",
    "Japan": "Tokyo", "Russia": "Moscow", "Turkey": "Ankara", "Kenya": "Nairobi", "Hungary": "Budapest",
    "Iraq": "Baghdad", "Sweden": "Stockholm", "Canada": "Ottawa", "China": "Beijing", "India": "Delhi",
}
CITIES = (*CAPITALS.values(), "Denver", "Houston", "Miami", "Seattle", "Sydney", "Boston", "Chicago", "Dallas")
# from the smallest to the largest
SIZES = (
    "ant,bee,grape,plum,mouse,apple,melon,rabbit,cat,dog,sheep,horse,elephant".split(","),
    "pebble,spoon,bucket,chair,bicycle,car,truck,train,castle,mountain".split(","),
)
SPELLED = (
    "yellow moon night milk snow light house rain horse water blue cat dog tree book fish bird star ball cake green "
    "happy bread apple chair table train river mouse sun red hand door king queen lion tiger sheep boat"
).split()
ROOMS = (
    "kitchen,bedroom,bathroom,living room,dining room,garage,hallway,basement,study,office,attic,nursery,porch,garden,"
    "cellar"
).split(",")
LIGHT_COLOURS = "red green blue yellow purple orange pink white".split()
DOORS = "front door,back door,side door,garden door,cellar door,barn door,garage door,kitchen door".split(",")
OPENINGS = "window,curtains,door,blinds".split(",")
MUSIC = "jazz,classical,dance,holiday,violin,children's,piano,guitar,rock,folk,country".split(",")
SONG_TOPICS = "winter,trains,love,summer,animals,rain,the sea,friends,dogs,the moon".split(",")
GROCERIES = (
    "milk,rice,cereal,soap,butter,carrots,sugar,toothpaste,onions,tea,salt,bananas,lemons,orange juice,potatoes,coffee,"
    "garlic,mushrooms,olive oil,bread,cheese,eggs,apples,honey,pasta,tomatoes"
).split(",")
FOODS_ON_TIMER = "pasta,eggs,rice,cake,bread,pizza,soup,cookies,tea,chicken".split(",")
PREFERENCES = (
    "snow rain,dogs cats,the country:the city,singing dancing,tea coffee,pasta pizza,evenings mornings,blue red,"
    "cake ice_cream,painting drawing,summer winter,apples oranges,books movies,the sea:the mountains,milk juice,"
    "trains planes,jazz rock,soccer tennis,walking running,spring autumn,soup salad,cheese chocolate"
)
PLACES = (
    "museum,pharmacy,park,police station,beach,church,harbor,market,bakery,airport,train station,library,zoo,"
    "post office,school,hospital,bank,hotel,theater,bridge"
).split(",")
OPENING_PLACES = "bakery,museum,library,bank,market,pharmacy,post office,zoo,school,shop".split(",")
DEPARTURES = "bus,train,plane,boat".split(",")
CHORES = (
    "return the library books,water the plants,visit the dentist,take out the trash,feed the cat,call my mother,"
    "walk the dog,pay the bills,wash the car,buy some milk,clean the kitchen,send a birthday card to {name},"
    "pick up {name} from school,buy flowers for {name},send {name} a birthday card,call {name}"
).split(",")
EVENTS = (
    "the plane lands,the doctor will call,the game starts,your friend is coming,the shop opens,the bakery closes,"
    "the train leaves,the movie begins,the meeting starts,the bus leaves"
).split(",")
HEROES = (
    "puppy,frog,rabbit,fox,squirrel,owl,turtle,robot,duck,mouse,bear,kitten,dragon,giant,king,sailor,wizard,princess,"
    "monkey,hedgehog"
).split(",")
HERO_TRAITS = "sleepy grumpy tiny clever curious hungry old brave happy lonely lazy little".split()
STORY_PLACES = (
    "behind the mountains,under a bridge,by the sea,on a small island,in an old castle,in a deep forest,near a lake,"
    "in a big city"
).split(",")
DEFINITIONS = {
    "village": "a group of houses in the country", "orchard": "a field where fruit trees grow",
    "orphan": "a child who has no parents", "pilot": "a person who flies an airplane",
    "library": "a place where you can borrow books", "ladder": "a frame with steps that helps you climb",
    "sculpture": "a work of art made of stone or metal", "vineyard": "a field where grapes grow",
    "anchor": "a heavy hook that stops a ship", "passport": "a small book that lets you travel",
    "volcano": "a mountain that can throw out fire and ash", "mechanic": "a person who repairs cars",
    "compass": "a tool that always points north", "bakery": "a shop where you can buy bread",
    "teacher": "a person who helps you learn", "doctor": "a person who helps sick people",
    "umbrella": "a thing that keeps you dry in the rain", "island": "a piece of land with water all around",
    "kitten": "a young cat", "puppy": "a young dog", "farmer": "a person who grows food",
    "telescope": "a tool for looking at the stars", "desert": "a very dry place with a lot of sand",
    "museum": "a place where you can see old things",
}
JOKES = {
    "what is a snowman's favorite breakfast": "Frosted flakes, I suppose.",
    "what has ears but cannot hear": "A field of corn has many ears.",
    "what has four wheels and flies": "A garbage truck, and it smells terrible.",
    "what has hands but cannot clap": "A clock has hands but cannot clap.",
    "why did the bee get married": "Because he found his honey.",
    "what has a neck but no head": "A bottle has a neck but no head.",
    "what do elves learn in school": "They learn the elf alphabet.",
    "why did the teacher wear sunglasses": "Because her students were so bright.",
    "what do you call a bear with no teeth": "A gummy bear, naturally.",
    "what goes up but never comes down": "Your age only goes up.",
    "why was six afraid of seven": "Because seven ate nine.",
    "why did the chicken cross the road": "To get to the other side, of course.",
    "what has keys but cannot open a door": "A piano has keys but cannot open a door.",
    "what gets wet while it dries": "A towel gets wet while it dries.",
    "why did the cookie visit the doctor": "Because it felt very crumbly.",
    "what has one eye but cannot see": "A needle has one eye but cannot see.",
}
FACTS = {
    "can a horse climb a tree": "No, horses cannot climb trees.",
    "is ice warm": "No, ice is frozen water and very cold.",
    "is the ocean salty": "Yes, there is a lot of salt in the ocean.",
    "does a week have eight days": "No, a week has only seven days.",
    "do cats like to sleep": "Yes, cats sleep for most of the day.",
    "do trees have roots": "Yes, trees drink water with their roots.",
    "is the earth round": "Yes, the earth is round like a ball.",
    "is a minute longer than an hour": "No, an hour has sixty minutes.",
    "do spiders have six legs": "No, spiders have eight legs.",
    "is a whale a fish": "No, a whale is a mammal.",
    "does the sun rise in the east": "Yes, the sun always rises in the east.",
    "are diamonds soft": "No, diamonds are extremely hard.",
    "do bees make honey": "Yes, bees make honey from flowers.",
    "can fish swim": "Yes, fish swim very well.",
    "can penguins fly": "No, penguins cannot fly, but they swim well.",
    "is the sun hot": "Yes, the sun is extremely hot.",
    "is fire cold": "No, fire is very hot.",
    "do cows eat grass": "Yes, cows eat grass all day.",
    "does a year have twelve months": "Yes, a year has twelve months.",
    "does a dog have two legs": "No, a dog has four legs.",
    "is snow white": "Yes, snow is white and cold.",
    "can birds fly": "Yes, most birds can fly.",
    "is the moon made of cheese": "No, the moon is made of rock.",
    "does a day have twenty four hours": "Yes, a day has twenty four hours.",
    "do elephants have long noses": "Yes, elephants have very long noses.",
    "is sugar sour": "No, sugar is sweet.",
    "do fish live in trees": "No, fish live in the water.",
    "can a car fly": "No, cars drive on the road.",
}
SEQUENCES = (
    "baby child teenager adult", "morning noon afternoon evening night", "red orange yellow green blue purple",
    "breakfast lunch dinner", "spring summer autumn winter", "seconds minutes hours days weeks months years",
    "small medium large", "yesterday today tomorrow", "seed plant flower fruit", " ".join(ORDINALS), " ".join(DAYS),
    " ".join(MONTHS),
)


def number(value: int) -> str:
    """English words of 0..199. Raises ValueError outside."""
    if not 0 <= value < 200:
        raise ValueError(f"can say 0 to 199, got {value}")
    if value >= 100:
        return "one hundred" + (f" {number(value - 100)}" if value > 100 else "")
    if value < 20:
        return ONES[value]
    return TENS[value // 10] + (f" {ONES[value % 10]}" if value % 10 else "")


def article(noun: str) -> str:
    """The noun with `a` or `an`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def pairs(table: str) -> list[list[str]]:
    """Pairs of a table `one two,three four`; an underscore or a colon between the two allows spaces inside an entry."""
    return [[w.replace("_", " ") for w in (p.split(":") if ":" in p else p.split())] for p in table.split(",")]
