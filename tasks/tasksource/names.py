"""Label names that are many, in the order of their numbers."""


def listed(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The names that a text lists."""
    return tuple(text.split(separator))


DBPEDIA = listed(
    "Company EducationalInstitution Artist Athlete OfficeHolder MeanOfTransportation Building NaturalPlace Village "
    "Animal Plant Album Film WrittenWork"
)

YAHOO = (
    "Society & Culture", "Science & Mathematics", "Health", "Education & Reference", "Computers & Internet", "Sports",
    "Business & Finance", "Entertainment & Music", "Family & Relationships", "Politics & Government",
)  # fmt: skip

TREC = ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")

TREC_FINE = tuple(
    f"{group}:{kind}"
    for group, kinds in (
        ("ABBR", "abb exp"),
        ("ENTY", "animal body color cremat currency dismed event food instru lang letter other plant product"),
        ("ENTY", "religion sport substance symbol techmeth termeq veh word"),
        ("DESC", "def desc manner reason"),
        ("HUM", "gr ind title desc"),
        ("LOC", "city country mount other state"),
        ("NUM", "code count date dist money ord other period perc speed temp volsize weight"),
    )
    for kind in listed(kinds)
)  # fmt: skip

NEWSGROUPS = listed(
    "alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware comp.windows.x "
    "misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt sci.electronics sci.med "
    "sci.space soc.religion.christian talk.politics.guns talk.politics.mideast talk.politics.misc "
    "talk.religion.misc"
)

EMOJI = listed("❤ 😍 😂 💕 🔥 😊 😎 ✨ 💙 😘 📷 🇺🇸 ☀ 💜 😉 💯 😁 🎄 📸 😜")

GO_EMOTIONS = listed(
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief "
    "remorse sadness surprise neutral"
)

LANGUAGES = listed("ar bg de el en es fr hi it ja nl pl pt ru sw th tr ur vi zh")

SCOTUS = (
    "criminal procedure", "civil rights", "first amendment", "due process", "privacy", "attorneys", "unions",
    "economic activity", "judicial power", "federalism", "interstate relations", "federal taxation", "miscellaneous",
)  # fmt: skip
"""The Supreme Court Database's issue areas 1 to 13."""

UNFAIR_TERMS = (
    "Limitation of liability", "Unilateral termination", "Unilateral change", "Content removal", "Contract by using",
    "Choice of law", "Jurisdiction", "Arbitration",
)  # fmt: skip

LEDGAR = listed(
    "Adjustments|Agreements|Amendments|Anti-Corruption Laws|Applicable Laws|Approvals|Arbitration|Assignments|Assigns|"
    "Authority|Authorizations|Base Salary|Benefits|Binding Effects|Books|Brokers|Capitalization|Change In Control|"
    "Closings|Compliance With Laws|Confidentiality|Consent To Jurisdiction|Consents|Construction|Cooperation|Costs|"
    "Counterparts|Death|Defined Terms|Definitions|Disability|Disclosures|Duties|Effective Dates|Effectiveness|"
    "Employment|Enforceability|Enforcements|Entire Agreements|Erisa|Existence|Expenses|Fees|Financial Statements|"
    "Forfeitures|Further Assurances|General|Governing Laws|Headings|Indemnifications|Indemnity|Insurances|Integration|"
    "Intellectual Property|Interests|Interpretations|Jurisdictions|Liens|Litigations|Miscellaneous|Modifications|"
    "No Conflicts|No Defaults|No Waivers|Non-Disparagement|Notices|Organizations|Participations|Payments|Positions|"
    "Powers|Publicity|Qualifications|Records|Releases|Remedies|Representations|Sales|Sanctions|Severability|Solvency|"
    "Specific Performance|Submission To Jurisdiction|Subsidiaries|Successors|Survival|Tax Withholdings|Taxes|"
    "Terminations|Terms|Titles|Transactions With Affiliates|Use Of Proceeds|Vacations|Venues|Vesting|"
    "Waiver Of Jury Trials|Waivers|Warranties|Withholdings",
    "|",
)

# ----------------------------------------------------------------------------------------- tags of words


def _spans(*kinds: str) -> tuple[str, ...]:
    """O, and of each kind the tag of its first word and of its others."""
    return ("O", *(f"{place}-{kind}" for kind in kinds for place in "BI"))


CONLL_ENTITIES = _spans("PER", "ORG", "LOC", "MISC")
CHUNKS = _spans("ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP")
CONLL_POS = listed(
    "\" '' # $ ( ) , . : `` CC CD DT EX FW IN JJ JJR JJS LS MD NN NNP NNPS NNS NN|SYM PDT POS PRP PRP$ RB RBR RBS RP "
    "SYM TO UH VB VBD VBG VBN VBP VBZ WDT WP WP$ WRB"
)
WNUT = _spans("corporation", "creative-work", "group", "location", "person", "product")
DISEASES = _spans("Disease")
MOLECULES = _spans("DNA", "RNA", "cell_line", "cell_type", "protein")
ACRONYMS = ("B-long", "B-short", "I-long", "I-short", "O")
FEW_NERD = listed("O art building event location organization other person product")
