"""News-like rows from word lists of our own: the whole pipeline runs on them without a download.

A template is a format string. `{team}` draws from the list of that name; `{team1}` draws once a row, so that headline and
sentences speak of the same team; `{win/draw}` draws one of the words written there; `{2-9}` draws a whole number.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import zip_longest
from random import Random
from typing import TypeVar

VERSION = 1
"""Raise it when the same seed would give other rows."""

CLASSES = ("World", "Sports", "Business", "Sci/Tech")

MIXED_SHARE = 0.05  # rows whose story two classes tell in the same words: often only a guess is left, as in real news
COMMON_SHARE = 0.15  # rows whose story all classes tell, each with its own few words for who and what
TAIL_SHARE = 0.45  # rows with a second sentence; half of these sentences are alike in all classes

# A class's own list stands under its name: {post} draws from "Sports post" in a row of Sports.
WORDS = {
    "city": """Amsterdam | Athens | Auckland | Bangkok | Berlin | Bogota | Brussels | Cairo | Chicago | Dublin | Hanoi | Geneva | Helsinki | Jakarta | Lagos | Lima | Lisbon |
        London | Madrid | Manila | Melbourne | Mexico City | Mumbai | Nairobi | New York | Oslo | Paris | Prague | Rome | Seoul | Sydney | Tokyo | Toronto | Vienna | Warsaw""",
    "country": """Argentina | Australia | Brazil | Canada | Chile | China | Denmark | Egypt | Finland | France | Germany | Ghana | Greece | India | Indonesia | Ireland |
        Italy | Japan | Kenya | Mexico | Norway | Peru | Poland | Portugal | South Africa | South Korea | Spain | Sweden | Thailand | Turkey | Vietnam""",
    "first": """Adela | Anton | Bram | Carys | Dario | Delia | Edda | Emil | Farah | Felix | Greta | Hugo | Ines | Ivo | Jonas | Kaya | Lena | Leon | Livia | Marek | Mira |
        Nadia | Nils | Odile | Oscar | Petra | Rafi | Rosa | Samir | Selma | Tamsin | Theo | Uma | Viktor | Wanda | Yusuf | Zora""",
    "last": """Abrantes | Ashgrove | Balcombe | Brisco | Calloway | Dalgaard | Delmonte | Ekberg | Falkner | Fenwick | Hallam | Idowe | Jarnvik | Kestler | Korhan |
        Lindqvale | Lomax | Norling | Okonji | Orsinelli | Quennell | Rosmer | Sandovar | Satoya | Tarkin | Thorley | Umbero | Vantreight | Velmonde | Wexford | Yarrow | Zelnik""",
    "weekday": "Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday",
    "month": "January | February | March | April | May | June | July | August | September | October | November | December",
    "agency": "Meridian Wire | Northgate Press | Harbor News | Atlas Dispatch | NGP | Compass Bulletin | Tideway News",
    "dateline": "{city} ({agency}) - | {agency} - | {city}, {month} {2-28} - | | | |",
    "number": "two | three | four | five | six | seven | eight | nine | ten | a dozen | {11-60}",
    "percent": "{1-29} percent | {1-9}.{1-9} percent | {1-48} pct",
    "money": "${2-95} million | ${1-9}.{1-9} billion | {10-900} million euros",
    "stem": "Albrix | Bremwell | Castora | Dunvale | Fenmore | Galdwick | Ironmere | Kelvane | Lumbrey | Marrowby | Nexwold | Orvanta | Pelgrove | Silvarne | Tarvane",
    "company": "{stem} | {stem} {Airlines/Bank/Energy/Foods/Group/Insurance/Media/Motors/Steel/Stores/Systems}",
    "maker": "{stem} | {stem} {Group/Labs/Media/Microdevices/Mobile/Networks/Online/Software/Systems}",
    "mascot": "Herons | Harriers | Otters | Kestrels | Badgers | Lanterns | Rovers | Wanderers | Comets | Pilots | Foxes",
    "team": "{city} {mascot} | {city} {mascot} | {city} | {country} | the {mascot}",
    "score": "{3-5}-{0-2}",
    "medal": "gold | silver | bronze",
    "event": "hurdles | marathon | relay | butterfly | high jump | 200 metres | 400 metres | 800 freestyle",
    "way": "up | down",
    "player": "forward | pitcher | defender | striker | guard | goalkeeper",
    "commodity": "crude oil | gold | copper | natural gas | coffee",
    "disaster": "storm | flood | earthquake | typhoon | landslide",
    "planet": "Saturn | Mars | Titan | the moon | a comet | an asteroid",
    "gadget": "chip | phone | music player | handheld | laptop | camera",
    "program": "browser | operating system | e-mail program | search tool | photo software",
    "source": """ | | | | | , according to {agency} | , in what {first} {last} called a {turning point/fair outcome/test of nerves} for {everyone/all} involved |
        , a day {before/after} a meeting in {city} with {first} {last} | , ending {days/weeks/months} of {uncertainty/waiting} that had {tested/divided} supporters |
        , {number} {days/weeks/months} after {first} {last} {promised/asked for/ruled out} a change of course |
        , despite {doubts/warnings/objections} raised by {first} {last} of {city} in {month}""",
    "group": "{body} | {body} | {panel}",
    "panel": "the national commission | the review panel | the council | the supervisory board | the association",
    "World body": "the foreign ministry | the interim government | parliament | the opposition alliance | the border commission | the electoral council | the peacekeeping force",
    "Sports body": "the league | the football federation | the players' union | the Olympic committee | {team} | the club | the tour organiser | the national team",
    "Business body": "the central bank | {company} | the stock exchange | the carmaker | the retailer | the airline | the lender | the pension fund | the market regulator",
    "Sci/Tech body": "the space agency | {maker} | the software maker | the browser project | the chip maker | the observatory | the standards body | the university laboratory",
    "matter": "{case} | {case} | {issue}",
    "issue": "the safety review | a change of rules | the budget | the schedule | a new headquarters | travel costs",
    "World case": "the border crossing | a new constitution | the peace plan | asylum rules | the election date | visas | food aid | the embassy | regional security",
    "Sports case": "the playoff format | the stadium | drug testing | video replays | the coaching job | the transfer window | next season's fixtures | ticket prices",
    "Business case": "the takeover bid | interest rates | a share sale | job cuts | the merger | the dividend | fuel costs | bankruptcy protection | ticket prices",
    "Sci/Tech case": "the satellite launch | the security patch | an open source licence | the genome project | spam | broadband access | the telescope | online music",
    "role": "{post} | {post} | chief | director | adviser",
    "World post": "president | prime minister | envoy | ambassador | governor | negotiator | general",
    "Sports post": "coach | captain | striker | goalkeeper | sprinter | champion | manager",
    "Business post": "chief executive | chairman | treasurer | economist | analyst | manager",
    "Sci/Tech post": "researcher | astronomer | programmer | engineer | biologist | inventor",
}

# Each story: its classes and headlines, then the sentences that fit any of these headlines.
STORIES = """
World # {country1} {votes/heads to polls} in {tight/historic/delayed} {election/presidential race} | {last1} {claims victory/leads} in {country1} {election/vote count}
Voters in {country1} {queued/turned out} on {weekday} to choose a {president/parliament}, with {first1} {last1} {ahead/on course to win} by {2-9} points{source}.
{first1} {last1} won {41-63} percent of the {vote/ballots} in {country1}, {election/electoral} officials said, as {opposition/rival} parties {asked for a recount/accepted the result}{source}.
World # {country1} and {country2} {resume/hold/agree to} {peace/border} talks | {last1} {hopeful/cautious} on {ceasefire/truce} as {envoys/ministers} meet in {city1}
{Envoys/Foreign ministers/Negotiators} from {country1} and {country2} met in {city1} on {weekday} to {discuss/renew} a {ceasefire/border treaty/peace accord}{source}.
{Leaders/Refugees/Aid workers} from {country1} {said/were told} that {observers/peacekeepers} would {arrive in/stay in} the {northern/southern/eastern} province while {talks/summits} {continued/went on} in {city1}{source}.
World # {disaster1} {hits/displaces thousands in} {southern/northern/coastal} {country1} | {rescuers/aid workers} reach {villages/towns} after {country1} {disaster1}
A {powerful/sudden} {disaster1} {damaged/cut off} {number} villages in {country1} and left {2-90},000 people without {homes/shelter/clean water}{source}.
{Rescue teams/Aid agencies/Soldiers} {brought food and tents/flew relief supplies} to {survivors/families} {in the hills/on the coast} of {country1}, where {roads/bridges} were {washed away/closed}{source}.
World # {thousands/tens of thousands} {march/rally/protest} in {city1} | {city1} {police call for calm/mayor allows rally} after {protest/demonstration}
{Demonstrators/Marchers/Students} filled the {streets/main square} of {city1} on {weekday} to {call for/demand} {new elections/the release of prisoners/reforms/the minister's resignation}{source}.
{Police/Security forces} in {city1} {watched/lined the route} as {4-80},000 {people/protesters} marched against the {government/emergency law}{source}.
Sports # {team1} {beat/edge/rout/stun} {team2} {score1} | {last1} {double/goal/header} {lifts/sends} {team1} past {team2}
{first1} {last1} scored {twice/the winner/late} as {team1} {beat/came from behind to beat} {team2} {score1} in {the quarterfinals/league play/the derby} on {weekday}{source}.
{team1} {moved to the top of/stayed third in} the {table/standings} with a {hard-fought/comfortable} {win/victory} over {team2}, whose {goalkeeper/captain} was {sent off/injured} in the {first/second} half{source}.
Sports # {last1} {storms/battles/cruises} into {city1} {final/semifinals} | {top/second/fifth} seed {last1} {wins/through} in {city1}
{first1} {last1} {beat/defeated/outlasted} {first} {last} {6-7}-{2-5}, 6-{0-4} on {weekday} to reach the {final/semifinals/third round} of the {city1} Open{source}.
{Crowd favourite/Left-hander} {first1} {last1} {needed/saved} {number} match points {on clay/on grass/indoors} in {city1} before {advancing/going through} to the next round{source}.
Sports # {team1} {sign/trade for/re-sign} {player1} {last1} | {last1} {injury/knee} {worries/blow for} {team1} {coach/before opener}
The {team/coach} of {team1} said {player1} {first1} {last1} {signed a new contract/would miss {number} games/returned to practice} on {weekday}{source}.
{first1} {last1}, who {scored/averaged} {11-34} {points/goals} last season, will {start/sit out} when {team1} {play/host/visit} {team2} on {weekday}{source}.
Sports # {last1} {takes/wins} {medal1} in {event1} | {country1} {athletes/runners/newcomers} {chase/collect} {medals/gold}
{first1} {last1} of {country1} {held off/finished beside} {first} {last} on {weekday} to win {medal1} in the {event1}, {1-3}.{10-99} seconds off the {national/world/games} record{source}.
{country1} took {number} medals at the {championships/games} in {city1}, with {first1} {last1} setting a {national/world/games} record in the {final/heats}{source}.
Sports # {last1} {on pole/wins} at {city1} {Grand Prix/500} | {last1} {leads/shares lead} at {city1} {Masters/Classic}
{first1} {last1} {led/won} by {number} {strokes/seconds/laps} {after/in} the {second/final} {round/stage/race} in {city1} on {weekday}{source}.
{Rookie/Veteran/Champion} {first1} {last1} {shot a {63-71}/held off the field/started from pole} to {win/lead} the {city1} {Classic/Grand Prix} in front of {9-70},000 fans{source}.
Business # {company1} {profit/quarterly profit} {way1} {percent1} | {company1} {raises/cuts/keeps} {outlook/forecast} as {sales/costs} {grow/slip}
{company1} said on {weekday} that {quarterly/third-quarter/full-year} {profit/net income} was {way1} {percent1} to {money} on {sales in {country}/currency swings/new store openings}{source}.
{Quarterly profit/Operating profit} at {company1}, {way1} {percent1} to {money}, {beat/missed/matched} analysts' {forecasts/estimates}, and its shares {moved little/swung widely/were active}{source}.
Business # {markets/traders} {steady/uneasy/calm} on {oil/jobs data/rate worries} | {markets/investors} {shrug off/await} {inflation/trade} data
{Stocks/Shares} {rose/fell/closed mixed} in {city1} on {weekday} as {investors/traders} {weighed/cheered} {earnings/inflation data/higher oil prices}, with the main index {up/down} {0-2}.{1-9} percent{source}.
The {dollar/euro/yen} {moved/swung} {0-2}.{1-9} percent against {other currencies/the pound} on {weekday} as markets digested {weak/strong} {jobs/trade/retail sales} figures from {country1}{source}.
Business # {company1} to {buy/acquire} {company2} for {money1} | {company2} {rejects/accepts/studies} {company1} {bid/offer}
{company1} {agreed to buy/made an offer for} {company2} in a {cash/stock/cash and stock} deal worth {money1} that would {save {money} a year/create the second-largest in its market}{source}.
{Shareholders/The board} of {company2} {backed/turned down} {company1}'s {takeover/bid} on {weekday}, {saying/after advisers said} it {undervalued/was fair to} {investors/the company}{source}.
Business # {commodity1} {nears/tops/eases from} {one/two/five}-year {high/peak} | {commodity1} {slips/climbs} as {supply fears ease/demand picks up/stocks build}
{commodity1} {futures/prices} moved {0-4}.{1-9} percent on {weekday} as {traders/producers} {watched/reported} {inventories/supplies/exports} in {country1}{source}.
{Producers/Exporters} of {commodity1} in {country1} said they would {raise/cut} output by {percent}, {easing/adding to} {pressure on/worries about} prices{source}.
Business # {country1} central bank {holds/raises/cuts} rates | {country1} {rates and jobs/inflation/economy} in focus in {month1}
The central bank of {country1} {raised/cut/held} {its key/its short-term} interest rate {on {weekday}/by a quarter point} and said {growth/inflation} would {slow/pick up} by {month1}{source}.
{Inflation/Unemployment/Retail sales growth} in {country1} was {0-9}.{1-9} percent in {month1}, {more/less} than economists {expected/had forecast}{source}.
Sci/Tech # {maker1} {releases/unveils/previews} {new/faster/free} {program1} | {maker1} {opens/updates} {program1} {for/to} {developers/users}
{maker1} {released/showed} a {test/beta/new} version of its {program1} on {weekday}, {adding/with} {tabs/spam filters/faster indexing/encryption}{source}.
{Programmers/Developers/Users} can download the {software/source code/update} from the Web site of {maker1}, which {runs on/supports} {2-9} {platforms/operating systems}{source}.
Sci/Tech # {worm/virus/security hole} {found/confirmed} in {maker1} {software/mail program} | {maker1} {patches/warns of} {flaw/flaws} in {browser/server software}
{Security researchers/Computer scientists} {found/reported} a {flaw/worm/virus} in {maker1} {software/servers} that lets {attackers/spammers} {read files/take over PCs} over the Internet{source}.
{maker1} {issued/posted} {number} {patches/fixes} on {weekday} for {holes/bugs} in its {server/media player/wireless} software and {urged/told} users to update{source}.
Sci/Tech # {probe/spacecraft/satellite} {nears/photographs/returns from} {planet1} | {astronomers/scientists} {hail/study} {images/data} of {planet1}
A {spacecraft/probe/robotic rover} {sent back/beamed} {images/data} of {planet1} on {weekday} {showing/hinting at} {ice/craters/methane}, {mission scientists/engineers} in {city1} said{source}.
{Astronomers/Researchers} using a {telescope/radio dish} in {country1} have {found/measured} {ice/craters/methane/dust} on {planet1}, {helped by/checking} data from a {probe/satellite}{source}.
Sci/Tech # {study/fossil/DNA test} {sheds light on/deepens riddle of} {climate/early humans/whales} | {scientists/biologists} {rethink/trace} {evolution/migration} of {rice/the honeybee/a frog}
{Scientists/Biologists/Researchers} in {country1} {have found/reported} that {warming seas/a single gene/ancient bones} {may explain/changed} {migration/evolution/coral reefs} {earlier/faster} than {thought/models predicted}{source}.
The {study/research}, {published/described} in a journal on {weekday}, {compared/analysed} {DNA/fossils/ice cores/cells} from {number} {species/sites} in {country1}{source}.
Sci/Tech # {maker1} {gadget1} {doubles/boosts} {speed/memory/battery life} | {maker1} to {ship/sell} {new/smaller} {gadget1} in {month1}
{maker1} said its {next/new} {gadget1} {would ship in {month1} with/has} {2-80} gigabytes of {memory/storage} and {wireless/Bluetooth/broadband} {support/access}{source}.
Engineers at {maker1} in {city1} {built/showed} a {gadget1} {prototype/display} that uses {percent} less power, a step toward {faster/smaller} {phones/computers/devices}{source}.
World, Sports # {country1} {government/ministers} {back/clear} {team1} {tour/match} after {border talks/protest}
{Ministers/Officials} in {country1} said on {weekday} that {team1} {could travel/may play} in {city1}, where {police/diplomats} {promised security/met the league}{source}.
World, Business # {country1} and {country2} {near/sign} {trade/oil/textile} {deal/treaty}
{Ministers/Trade envoys} from {country1} and {country2} {agreed to cut/discussed} tariffs worth {money} in {city1} on {weekday}, {as exporters watched/before an election}{source}.
World, Sci/Tech # {country1} {parliament/government} {votes on/funds} {climate/space/nuclear research} {plan/treaty}
The {government/parliament} of {country1} said on {weekday} it would {send scientists to/pay for} a {satellite/research reactor/climate station} with {country2}{source}.
Sports, Business # {team1} {owner/board} {weighs/accepts} {money1} {bid/offer} from {company1}
{company1} offered {money1} for {a stake in/the stadium of} {team1} on {weekday}, and {shareholders/fans} {will vote/were divided}{source}.
Sports, Sci/Tech # {scientists/researchers} {test/study} {team1} {players/runners} with new {sensor/software}
{Engineers/Researchers} in {city1} gave {team1} {a camera system/a blood test/sensors} to {track/measure} {players/speed} before the {season/championships}{source}.
Business, Sci/Tech # {maker1} {sales/shares} {rise/fall} on {chip/phone/software} {demand/launch}
{maker1} said on {weekday} that {revenue/sales} from its {software/wireless chips/online music} {rose/fell} {percent} to {money}{source}.
World, Sports, Business, Sci/Tech # {group1} {split/to decide/undecided} on {matter1} | {last1} {urges/presses} {group1} to {rethink/settle} {matter1}
{group1} {said on/will say by/signalled on} {weekday} it {may/will} {review/delay/back} {matter1}{source}.
A {decision/vote/ruling} on {matter1} is expected on {weekday}, {first1} {last1} of {group1} said in {city}{source}.
World, Sports, Business, Sci/Tech # {last1} {quits/steps down/to leave} after {number} years as {role1} | {last1} {named/picked as} new {role1} by {group1}
{first1} {last1}, the {role1} who joined {group1} {number} years ago, {spoke/confirmed the move} in {city1} on {weekday}{source}.
{group1} said on {weekday} that {role1} {first1} {last1} would {hand over/take on} {wider/new} duties in {month}{source}.
"""

TAILS = """
World, Sports, Business, Sci/Tech #
The {news/move} had been expected since {month}, when {first} {last} first {raised/mentioned} it in {city}{source}.
{first} {last}, who was in {city} on {weekday}, said it was {too early to judge/a good day/only a first step/harder than it looked}{source}.
It is the {second/third/fourth/fifth} time in {number} {months/years} that {first} {last} has {made/lost/won} such a {case/gamble}{source}.
"We {knew/hoped} that it would be {close/difficult/a long day}," {first} {last} said, "and now we have to {look ahead/get on with it}."
A {decision/result/statement} is not {due/likely} before {month}, and people in {city} were {divided/hopeful/cautious} about what comes next{source}.
World #
{Diplomats/Residents} in {city} said the {government/opposition} had {until {weekday}/little time} to {answer/calm the streets}, after {number} {weeks/months} of {unrest/talks}{source}.
The {prime minister/president}, {first} {last}, {called/cancelled} a {cabinet meeting/state visit} and {promised aid/asked for patience}{source}.
Sports #
The {result/day} was the {second/third/fourth} of its kind in {five/six/seven/eight/{9-20}} {games/matches} for the {coach/captain}, {first} {last}, whose side {plays/visits} {team} on {weekday}{source}.
A {crowd/sellout} of {8-70},{100-999} {saw/cheered} {first} {last}, who {retired last season/is still unbeaten/will play again on {weekday}}{source}.
Business #
Analysts had {expected/forecast} {percent} on {average/weaker demand}, and the {stock/shares} {closed/traded} at ${4-90}.{10-99} {in {city}/after hours}{source}.
The {company/group} has {cut {2-60}00 jobs/closed {number} stores/paid down {money} of debt} since {month}, and {investors/lenders} {want/expect} more{source}.
Sci/Tech #
The {technology/software/instrument} was {built/tested} by {number} {engineers/researchers} in {city} and could reach {computers/users/laboratories} by {month}{source}.
{Experts/Scientists} such as {first} {last} {said/cautioned} that more {data/tests/experiments} were needed to {rule out a bug/confirm the theory}{source}.
"""

T = TypeVar("T")
Draw = Callable[[], float]


@cache
def _stories(text: str, label: str, tellers: int) -> list[tuple[list[str], list[str]]]:
    """Headlines and sentences of the stories that so many classes tell, this one among them."""
    blocks = re.findall(r"^(.+) #(.*)\n((?:[^#\n]+\n)+)", text, re.MULTILINE)
    told = [block for block in blocks if label in block[0] and block[0].count(",") == tellers - 1]
    return [(headlines.split("|"), sentences.splitlines()) for _, headlines, sentences in told]


@cache
def _parts(template: str, label: str) -> list[tuple[str, Sequence[str | int], str]]:
    """Literals, what may follow each of them, and the name of that choice if it is made once a row."""
    pieces = re.split(r"\{((?:[^{}]|\{[^{}]*\})*)\}", template)  # a choice may hold slots, but these no further choices
    parts: list[tuple[str, Sequence[str | int], str]] = []
    for literal, slot in zip_longest(pieces[::2], pieces[1::2], fillvalue=""):
        if limits := re.fullmatch(r"(\d+)-(\d+)", slot):
            parts.append((literal, range(int(limits[1]), int(limits[2]) + 1), ""))
        elif "/" in slot or not slot:
            parts.append((literal, slot and slot.split("/"), ""))
        else:
            name = slot.rstrip("12")
            words = WORDS.get(f"{label} {name}") or WORDS[name]
            parts.append((literal, [" ".join(word.split()) for word in words.split("|")], slot if slot != name else ""))
    return parts


def _pick(choices: Sequence[T], draw: Draw) -> T:
    return choices[int(draw() * len(choices))]


def _fill(template: str, label: str, known: dict[str, str], draw: Draw) -> str:
    if "{" not in template:
        return template
    text = ""
    for literal, choices, key in _parts(template, label):
        text += literal
        if key in known:
            text += known[key]
        elif choices:
            while (value := _fill(str(_pick(choices, draw)), label, known, draw)) in known.values():
                pass  # no team plays against itself
            if key:
                known[key] = value
            text += value
    return text


def _row(label: str, draw: Draw) -> str:
    luck = draw()
    tellers = 2 if luck < MIXED_SHARE else len(CLASSES) if luck < MIXED_SHARE + COMMON_SHARE else 1
    headlines, sentences = _pick(_stories(STORIES, label, tellers), draw)
    templates = [_pick(headlines, draw).strip(), "{dateline}", _pick(sentences, draw)]
    if draw() < TAIL_SHARE:
        [(_, tails)] = _stories(TAILS, label, _pick((1, len(CLASSES)), draw))
        templates.append(_pick(tails, draw))
    known: dict[str, str] = {}
    texts = [_fill(template, label, known, draw) for template in templates]
    return " ".join(text[0].upper() + text[1:] for text in texts if text)


def sample_rows(rows: int, *, seed: int) -> Iterator[tuple[str, str]]:
    """(text, class name) pairs, each class as often as the others; a larger sample starts with the smaller one."""
    draw = Random(seed).random  # the one method whose numbers stay the same in every version of Python
    order = list(CLASSES)
    for row in range(rows):
        if row % len(CLASSES) == 0:
            order.sort(key=lambda _: draw())
        label = order[row % len(CLASSES)]
        yield _row(label, draw), label
