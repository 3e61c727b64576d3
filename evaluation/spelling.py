"""British spellings and the American ones that count as the same word when errors are counted.

The table of OpenAI's Whisper (`normalizer.json`) comes with none of the packages of the extra `eval`. This one is made
of everyday words in the families that differ by rule, and of single words. Left out are pairs that sound different
(aluminium, learnt), that are other words (mum, towards), or that American English spells both ways by meaning
(analyses).
"""

# ruff: noqa: SIM905 (word lists)

OUR = (
    "arbour armour behaviour clamour colour discolour dishonour endeavour favour flavour harbour honour humour labour "
    "misbehaviour neighbour odour parlour rumour saviour savour splendour tumour valour vapour vigour"
).split()
OUR_ENDINGS = " s ed ing ite ites able ably ful fully less hood hoods ly er ers ist ists y al".split(" ")
RE = (
    "calibre centre centimetre fibre kilometre litre lustre meagre metre millilitre millimetre sabre sombre spectre "
    "theatre"
).split()
ISE = (
    "agonis antagonis apologis authoris capitalis categoris characteris civilis colonis criticis crystallis customis "
    "emphasis energis equalis familiaris fantasis fertilis finalis generalis harmonis hospitalis hypnotis idolis "
    "immunis legalis maximis mechanis memoris minimis mobilis modernis monopolis neutralis normalis optimis organis "
    "patronis penalis personalis popularis prioritis publicis randomis realis recognis reorganis sanitis scrutinis "
    "socialis specialis stabilis standardis sterilis subsidis summaris symbolis sympathis synchronis terroris theoris "
    "urbanis utilis vandalis verbalis victimis visualis vocalis"
).split()
ISE_ENDINGS = "e es ed ing er ers able ation ations".split()
YSE = "analys catalys paralys".split()
YSE_ENDINGS = "e ed ing er ers".split()
# stems with the l that British English doubles before an ending
DOUBLED_L = (
    "bevell cancell channell chisell counsell diall duell equall fuell funnell grovell initiall jewell labell levell "
    "libell marvell medall modell panell pedall pencill quarrell ravell refuell revell rivall shovell shrivell signall "
    "snorkell spirall stencill swivell totall towell travell tunnell unravell"
).split()
DOUBLED_L_ENDINGS = "ed ing ings er ers ist ists or ors ous ously".split()
SINGLE = (
    "acknowledgement acknowledgment,ageing aging,anaemia anemia,anaesthetic anesthetic,analogue analog,appal appall,"
    "armoury armory,axe ax,calliper caliper,catalogue catalog,catalogues catalogs,centred centered,centring centering,"
    "cheque check,cheques checks,chequered checkered,chilli chili,colourise colorize,cosier cozier,cosiest coziest,"
    "cosily cozily,cosy cozy,defence defense,defenceless defenseless,defences defenses,dialogue dialog,"
    "dialogues dialogs,diarrhoea diarrhea,distil distill,doughnut donut,doughnuts donuts,draught draft,draughts drafts,"
    "draughty drafty,encyclopaedia encyclopedia,enrol enroll,enrolment enrollment,enrols enrolls,foetus fetus,"
    "fulfil fulfill,fulfilment fulfillment,fulfils fulfills,gramme gram,grammes grams,grey gray,greyer grayer,"
    "greyest grayest,greyish grayish,greys grays,haemorrhage hemorrhage,homoeopathy homeopathy,instalment installment,"
    "instalments installments,instil instill,jewellery jewelry,judgement judgment,judgements judgments,kerb curb,"
    "kerbs curbs,leukaemia leukemia,licence license,licences licenses,liquorice licorice,manoeuvre maneuver,"
    "manoeuvres maneuvers,mediaeval medieval,mould mold,moulds molds,mouldy moldy,moustache mustache,"
    "moustaches mustaches,oesophagus esophagus,oestrogen estrogen,offence offense,offences offenses,omelette omelet,"
    "omelettes omelets,orthopaedic orthopedic,paediatric pediatric,paediatrician pediatrician,plough plow,"
    "ploughed plowed,ploughing plowing,ploughs plows,practise practice,practised practiced,practises practices,"
    "practising practicing,pretence pretense,programme program,programmes programs,pyjamas pajamas,sceptic skeptic,"
    "sceptical skeptical,sceptics skeptics,skilful skillful,skilfully skillfully,smoulder smolder,"
    "smouldering smoldering,storey story,storeys stories,sulphur sulfur,tyre tire,tyres tires,wilful willful,"
    "wilfully willfully,woollen woolen,yoghurt yogurt,yoghurts yogurts"
)


def american_spellings() -> dict[str, str]:
    """American spelling by British one, in lower case; combinations that are no words are among the keys."""
    table = dict(pair.split() for pair in SINGLE.split(","))
    for word in OUR:
        table |= {word + ending: f"{word[:-3]}or{ending}" for ending in OUR_ENDINGS}
    for word in RE:
        table |= {word + ending: f"{word[:-2]}er{ending}" for ending in ("", "s")}
    for stems, endings in ((ISE, ISE_ENDINGS), (YSE, YSE_ENDINGS)):
        table |= {stem + ending: f"{stem[:-1]}z{ending}" for stem in stems for ending in endings}
    for stem in DOUBLED_L:
        table |= {stem + ending: stem[:-1] + ending for ending in DOUBLED_L_ENDINGS}
    return table
