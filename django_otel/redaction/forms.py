"""Secrets that are known by their form alone: keys of vendors, signed values, password hashes, private keys, cards."""

from __future__ import annotations

import re

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.keys import REDACTED, has_random_part, is_mixed, is_placeholder, is_random, words

_PEM = lazy_pattern(
    r"(?:-----BEGIN |---- BEGIN |\A(?=[^\n]{1,90}-----[\s\\]))[^-\n]{0,60}PRIVATE KEY[^-\n]{0,20}----.*?(?:---- ?END [^-\n]{0,80}-----?|\Z)",  # noqa: E501
    re.DOTALL,
)
#: Of PuTTY.
_PUTTY = lazy_pattern(r"(Private-Lines: [0-9]{1,3}\s{1,4})(?:[A-Za-z0-9+/=]{1,128}+\r?(?:\n|\Z))++")
#: The inside of a key in PEM, of which nothing is left that says what it is.
_PEM_LINES = lazy_pattern(
    r"(?:^|(?<=[\s'\"]))[A-Za-z0-9+/]{64}(?:(?:\r?\n|\\n)[A-Za-z0-9+/]{64}(?![A-Za-z0-9+/])){2,}+(?:(?:\r?\n|\\n)[A-Za-z0-9+/=]{1,64}+)?"
)
_SHORTEST_LINES = 190
_PEM_END = lazy_pattern(r"-----END [^-\n]{0,60}PRIVATE KEY[^-\n]{0,20}-----")
_LINE_BREAK = lazy_pattern(r"(\r?\n|\\+r|\\+n|[ \t]+)")
_BASE64_LINE = lazy_pattern(r"[A-Za-z0-9+/=]{1,80}+\Z")
#: Characters before the end of a private key that are searched for its lines.
_MAX_KEY_LENGTH = 16_384
_URL_RUN = lazy_pattern(r"://\S++")
_AUTHORITY_END = lazy_pattern(r"""[/?#"'<>\\`]""")
#: //bob:x@host/path, bob:x@host:3128, bob/x@host:1521/XE; a port makes the last two none of the many `name:address@host`.  # noqa: E501
_BARE_USERINFO = lazy_pattern(
    r"(?<![^\s\"'=(,<\[])(?:(//)[^\s:@/\"'\[\]]{1,100}:[^\s@/\"']{1,200}(?=@[\w\[])"
    r"|(?!(?:sips?|xmpp|mailto|turns?|stuns?|acct|npm|im|h323|docker|tel|from|to|cc):)[\w.\-]{1,60}:[^\s:@/\"'\[]{1,100}"
    r"(?=@(?:[\w.\-]{1,100}:[0-9]{2,5}(?!\w)|(?:tcp|udp|unix)\())"
    r"|[A-Za-z][\w$#]{0,40}/[^\s/@\"':]{1,100}(?=@(?://)?[\w.\-]{1,100}:[0-9]{4,5}/\w))"
)
#: 'bob:x1Y2z3@host': the password has a digit and a capital or a mark, as the part behind `email:` rarely has.
_STRONG_USERINFO = lazy_pattern(
    r"(?<![^\s\"'=(,<\[])"
    r"(?!(?:sips?|xmpp|mailto|turns?|stuns?|acct|npm|im|h323|docker|tel|from|to|b?cc|e-?mail|urn|user):)"
    r"([\w.\-]{0,60}:)"
    r"(?=[^@\s]{0,100}[0-9])(?=[^@\s]{0,100}[A-Z!#$%*+^~&?])(?=[^@\s]{0,100}[a-zA-Z])[^\s:@/\"'\[\]]{6,100}(?=@[\w\[])"
)
_PORT = lazy_pattern(r"(?:[0-9]{0,5}|\[redacted\])[).,;:\]}]*")
#: db-0:27017,db-1:27017
_HOSTS = lazy_pattern(r"[\w.\-]{1,200}:[0-9]{1,5}(?:,[\w.\-]{1,200}(?::[0-9]{1,5})?){1,50}[).;}]*")
# base64url of '{"': a JWT, and what django.core.signing makes. Possessive, so a failure is at most eight characters.
_JWT = lazy_pattern(r"eyJ[A-Za-z0-9_\-]{8,}+(?:[.:]{1,2}[A-Za-z0-9_\-=]++)*+")
#: Every token below has such a run, or the beginning of one.
_HAS_RUN = lazy_pattern(r"[A-Za-z0-9_\-]{19}")
_B = r"[A-Za-z0-9_\-]"
_KNOWN_TOKENS = lazy_pattern(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AIPA|ANPA|ANVA|AROA|LTAI|AKID)[A-Z0-9]{16}[A-Za-z0-9]{0,20}(?![A-Za-z0-9])"
    r"|(?:IQoJb3|FwoGZX|AQoDYXdz)[A-Za-z0-9+/=%]{40,}+"  # AWS session tokens
    r"|gh[pousr]_[A-Za-z0-9]{20,}+|github_pat_[A-Za-z0-9_]{20,}+|v1\.[0-9a-f]{40}(?![0-9a-f])"
    rf"|gl(?:pat|dt|rt|cbt|ptt|ft|soat|imt|agent|oas|ffct|wt)-{_B}{{16,}}+|gl(?:sa|c)_[A-Za-z0-9_+/=]{{20,}}+"
    rf"|xox[a-z]-[A-Za-z0-9\-]{{10,}}+|xapp-[A-Za-z0-9\-]{{16,}}+|xoxe\.{_B}{{16,}}+"  # Slack
    r"|(?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,}+"  # Stripe
    rf"|sk-{_B}{{20,}}+|(?:pplx|xai|gsk|fw|csk|lsv2|tvly|ctx7sk|dsk|r8|hf|api_org|nvapi)[-_]{_B}{{20,}}+"
    rf"|AIza{_B}{{30,}}+|GOCSPX-{_B}{{20,}}+|ya29\.{_B}{{20,}}+|1//0{_B}{{30,}}+"  # Google
    rf"|npm_[A-Za-z0-9]{{30,}}+|pypi-{_B}{{30,}}+|rubygems_[0-9a-f]{{40,}}+|oy2[a-z0-9]{{43}}(?![a-z0-9])|cio[A-Za-z0-9]{{32}}(?![A-Za-z0-9])"
    rf"|SG\.{_B}{{16,}}+\.{_B}{{16,}}+|xkeysib-{_B}{{20,}}+|re_[A-Za-z0-9]{{6,12}}_[A-Za-z0-9]{{16,}}+"
    r"|SK[0-9a-f]{32}(?![0-9A-Za-z])|key-[0-9a-z]{32}(?![0-9A-Za-z])|[0-9a-f]{32}-us[0-9]{1,2}(?![0-9A-Za-z])"
    rf"|do[por]_v1_[0-9a-f]{{32,}}+|shp(?:at|ca|pa|ss|tka)_[0-9A-Za-z]{{16,}}+|EAAA[A-Za-z0-9]{_B}{{40,}}+"
    rf"|sq0(?:atp|csp|idp)-{_B}{{16,}}+|EAA[A-Z0-9][A-Za-z0-9]{{60,}}+|sntry[su]_[A-Za-z0-9_\-+/=.]{{30,}}+"
    r"|(?<![.])s\.(?=[A-Za-z]*[0-9])(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{24}(?![A-Za-z0-9.(])"
    rf"|hv[sbr]\.{_B}{{20,}}+|dapi[0-9a-f]{{32}}(?:-[0-9])?(?![0-9A-Za-z])|dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9._\-]{{20,}}+"
    rf"|dckr_(?:pat|oat)_{_B}{{20,}}+|NR(?:AK|JS|II|RA|AA)-[A-Za-z0-9\-]{{16,}}+|PMAK-[0-9a-f\-]{{40,}}+"
    rf"|AT(?:ATT|CTT|BB|OA)[A-Za-z0-9]{_B}{{18,}}+=?|AGE-SECRET-KEY-1[0-9A-Z]{{40,}}+"
    rf"|(?:figd|ntn|(?:secret|ops|ey)(?=[-_][a-z0-9_\-]{0, 60}+[A-Z])|nfp|sbp|phx|bkua|pul|tfp|fio-u|lin_oauth|CFPAT|CCIPAT|CCIPRJ|vercel_blob_rw|tskey|sb_secret)"  # noqa: E501
    rf"[-_][A-Za-z0-9]{_B}{{23,}}+"
    r"|[a-z]{2,12}_(?:pat|live|test|prod|secret|api|key|token|tkn|tok|oauth|pw)_[A-Za-z0-9]{16,}+"
    r"|pat-(?:na|eu)[0-9]-[0-9a-f\-]{36}|[0-9]{8,10}:[A-Za-z0-9_\-]{35}(?![A-Za-z0-9_\-])"  # HubSpot, Telegram
    rf"|[MNO][A-Za-z0-9_\-]{{23,25}}\.{_B}{{6}}\.{_B}{{27,}}+"  # Discord
    rf"|sl\.{_B}{{60,}}+|access_token\$(?:production|sandbox)\$[0-9a-z]{{16}}\$[0-9a-f]{{32}}|FLWSECK(?:_TEST)?-[0-9a-zA-Z]{{12,}}+(?:-X)?"
    r"|mlsn\.[0-9a-f]{40,}+|(?:sdk|mob|api)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9A-Za-z])|hca[a-z]k_[a-z0-9]{30,}+"
    rf"|AKCp[0-9][A-Za-z0-9]{{40,}}+|sq[apu]_[0-9a-f]{{40}}(?![0-9A-Za-z])|HRKU-{_B}{{30,}}+|A{{20}}[A-Za-z0-9%]{{60,}}+"
    rf"|v[1-4]\.(?:local|public)\.{_B}{{40,}}+|gAAAAA[A-Za-z0-9_\-]{{60,}}+=*|MDA[a-z0-9]{_B}{{60,}}+|EZ[AT]K[0-9A-Za-z]{{50,}}+"
    rf"|rnd_[A-Za-z0-9]{{20,}}+|APP_USR-[0-9A-Za-z\-]{{30,}}+|f(?:m[12][a-z]?|o1)_[A-Za-z0-9+/=_\-]{{40,}}+|ABSK[A-Za-z0-9+/=]{{60,}}+"
    r"|v1\.0-[0-9a-f]{24}-[0-9a-f]{100,}+|secret-token:[^\s\"'<>]{8,}+|pat[A-Za-z0-9]{14}\.[0-9a-f]{64}"
    r"|LS0tLS1CRUdJTi(?!BDRVJU|BQVUJM)[A-Za-z0-9+/]{40,}+=*"
    r"|base64url\.bearer\.authorization\.k8s\.io\.[A-Za-z0-9_\-]{16,}+"
    r"|[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_\-]{40,}+"
    r"|(?<![\w~.\-])[A-Za-z0-9_~.\-]{3}[0-9]Q~[A-Za-z0-9_~.\-]{31,34}(?![\w~])"  # Azure
    r"|AC[0-9a-f]{32}[\"',: ]{1,5}[0-9a-f]{32}(?![0-9A-Za-z])"  # Twilio, account and its token
    r")"
    r"|(?<=/bot)[0-9]{8,10}:[A-Za-z0-9_\-]{30,}+"
)
#: Of Django's cached sessions, and others that are named so.
_SESSION_KEY = lazy_pattern(
    r"(?:(?<=contrib\.sessions\.cache)|(?<=contrib\.sessions\.cached_db)|(?<=[Ss]ession[_\-]))"
    r"(?=[A-Za-z]{0,31}[0-9])[A-Za-z0-9]{32,64}(?![A-Za-z0-9])"
)
#: Of django.core.signing: a compressed value, and a text or number with its signature, dated or not.
_SIGNED = lazy_pattern(
    rf"(?<![A-Za-z0-9_\-.+@])(?:\.eJ{_B}{{8,}}+(?::{_B}++){{0,2}}+"
    rf"|[A-Za-z0-9_\-.+@]++(?P<when>:1[0-9A-Za-z]{{5}}+)?(?::[0-9A-Za-z]{{5,8}}+)?:(?P<sig>{_B}{{43}}|{_B}{{27}})(?!{_B}|:))"
)
_DIGESTS = words("sha1 sha256 sha384 sha512 md5")
#: A random text behind a word that says what it is.
_RUN = lazy_pattern(r"(?<=[\s'\"])(?=[A-Za-z_\-+/=~.]*+[0-9])[A-Za-z0-9_\-+/=~.]{16,}+")
_NAME_BEFORE = lazy_pattern(
    r"(?i)(?:token|session|secret|password|cookie|csrf|jwt|signature|credential|nonce"
    r"|(?:auth(?:orization)?|device|access|verification|invit(?:e|ation)|reset|activation|pairing|login)[_\- ]code"
    r"|(?:api|access|auth|private|secret|licen[sc]e|activation|encryption|signing|master|webhook|recovery|unseal|invalid|unknown|wrong|bad|expired|revoked)[_\- ]?key)s?"  # noqa: E501
    r"(?:[ _](?:id|key|basic|post))?(?:[ ]{1,3}(?:is|was|are|issued|generated|created|now|set|to|value|provided|given|received|supplied|used|rejected|not|found|invalid|expired|for)){0,3}:?\s{1,3}['\"]?\Z"  # noqa: E501
)
#: refresh token reuse detected: x
_NAME_FAR = lazy_pattern(
    r"(?i)\b(?:token|session|secret|password|csrf|jwt|credential|api[_\- ]key|nonce)s?"
    r"(?:[ ][a-z]{2,14}){1,4}:[ ]['\"]?\Z"
)
#: WIFI:T:WPA;S:office;P:x;;
_WIFI = lazy_pattern(r"(\bWIFI:(?:[TSHREAI]:(?:[^;\\\n]|\\.){0,100};){0,8}P:)(?!\[redacted\])(?:[^;\\\n]|\\.){1,200}")
#: csrf mismatch: expected x, got y
_SAYS_WHICH = r"(?:expected|wanted|got|received|computed|calculated|given|provided)[ :=]{1,3}"
_COMPARED = lazy_pattern(
    rf"(?i)(\b(?:csrf|xsrf|token|hmac|signature|secret|password|nonce|api[_ \-]?key)s?\b"
    rf"[^\n]{{0,60}}?\b{_SAYS_WHICH}['\"]?)"
    rf"([A-Za-z0-9_\-+/=~.]{{16,200}}+)"
    rf"(?:(['\"]?,?[ ](?:but[ ]|and[ ]|vs\.?[ ])?(?:{_SAYS_WHICH})?['\"]?)([A-Za-z0-9_\-+/=~.]{{16,200}}+))?"
)
#: Unseal Key 1: x, of Vault
_NUMBERED = lazy_pattern(
    r"(?i)(\b(?:unseal|recovery)[ _\-](?:key|share)(?:[ _\-]share)?[ _\-]#?[0-9]{1,2}[:=][ ]{0,2}['\"]?)"
    r"([A-Za-z0-9_\-+/=]{16,200}+)"
)
#: ::add-mask::x, of GitHub's workflows
_ADDED_MASK = lazy_pattern(r"(::add-mask::)(?!\[redacted\])[^\s\"']+")
#: ?t=x, of links in mails, and names that stand for the id of a row as well as for a key.
_SHORT_PARAMETER = lazy_pattern(
    r"((?:\A|(?<=[?&;#]))(?:[a-pr-uw-z]|tk|tok|sess|cred|link|magic|sesame|app_?id|verify|confirm|activate|activation|reset|unsubscribe"
    r"|opt_?in|login|mac|checksum|samlart)=)([A-Za-z0-9_\-]{16,}+)"
)
#: ?u=bob&p=x
_SHORT_LOGIN = lazy_pattern(
    r"(\b(?:u|usr|user|username)=[^\s&=]{1,60}[&;, ][ ]?p=)"
    r"(?=[^\s&]{0,60}[0-9])(?=[^\s&]{0,60}[A-Za-z])[^\s&;,\"'<>\[]{6,100}"
)
#: https%3A%2F%2Fbob%3Ax%40host, a URL that is a parameter itself, percent-encoded once or more often.
_ENCODED_USERINFO = lazy_pattern(
    r"(?i)(%(?:25){0,4}3A(?:%(?:25){0,4}2F){2})(?!\[redacted\])(?:(?!%(?:25){0,4}(?:2F|3F|40))[^\s\"'<>&/?#]){1,300}(?=%(?:25){0,4}40)"
)
#: Characters of a random text that has few digits.
_SHORTEST_RANDOM = 20
#: Characters before a random text in which its name is looked for.
_NAME_LENGTH = 64
#: Tokens of django.contrib.auth.tokens: seconds in base 36, a part of an HMAC.
_RESET_TOKEN = lazy_pattern(r"(?<![A-Za-z0-9])(?!sha[0-9]{3}-)[0-9a-z]{6,7}-[0-9a-f]{32}(?![0-9A-Za-z]|\.[a-z])")
_HEX = lazy_pattern(r"(?=[0-9]{0,63}[a-f])[0-9a-f]{32,128}")
_PASSWORD_HASH = lazy_pattern(
    r"(?:(?:pbkdf2|argon2|bcrypt|scrypt|md5|sha1|sha256|sha512|unsalted)[a-z0-9_]{0,12}|\b(?:grub\.pbkdf2[a-z0-9.]{0,12}))"
    r"\$(?:\[redacted\]|[^\s\"'<>,;)\]}]){12,}+"
    r"|\$(?:2[abxy]?|argon2(?:id|i|d)|[1567]|y|gy|7|pbkdf2[a-z0-9\-]{0,10}|scrypt|sha1|md5|apr1|P)\$[A-Za-z0-9./+=,$\-_]{16,}+"
    r"|\{(?:S?SHA(?:256|512)?|S?MD5|CRYPT|PBKDF2[A-Z0-9\-]{0,8})\}[A-Za-z0-9+/=$.]{16,}+"
    r"|\{(?:PLAIN|CLEAR|CLEARTEXT|CRAM-MD5|SHA(?:256|512)-CRYPT|BLF-CRYPT|ARGON2ID?)\}(?!\[redacted\])[^\s:,;\"'<>]{3,}+"
    r"|SCRAM-SHA-(?:1|256|512)\$[0-9]{1,9}:(?:\[redacted\]|[^\s\"'<>,;)\]}]){1,}+"
)
_MYSQL_HASH = lazy_pattern(r"\*[0-9A-F]{40}(?![0-9A-Za-z])")
_SCHEME_NAMES = ("bearer", "basic", "token", "digest", "negotiate", "apikey")
_SCHEME = lazy_pattern(
    rf"(?i)(?<![A-Za-z0-9_\-])({'|'.join(_SCHEME_NAMES)})([ \t]++|%20|\+)"
    r"""(?!\[redacted\])((?:[^\s"'\\,;<>()\[\]{}&]|\\[^"'\\])++)"""
)
#: Schemes whose names are words of sentences as well: a long random text has to follow.
_RARE_SCHEME = lazy_pattern(
    r"(?<![A-Za-z0-9_\-])((?:NTLM|DPoP|SSWS|GenieKey|JWT|Kerberos|Zoho-oauthtoken|PrivateToken|Client-ID|Klaviyo-API-Key|HMAC-SHA(?:1|256|512)|GNAP"
    r"|SharedKey(?:Lite)?|AWS)[ \t]++)(?!\[redacted\])((?:[\w\-]{1,80}:)?[A-Za-z0-9+/=_.~\-]{20,}+)"
)
_HAS_SCHEME = lazy_pattern(rf"(?i)(?:{'|'.join(_SCHEME_NAMES)})(?:[ \t+]|%20)")
_DIGEST = lazy_pattern(r"(?:sha[0-9]{1,3}|md5|blake2b):[0-9a-f]{16,}")
_COLUMN_TYPES = words("TEXT VARCHAR CHAR UUID BYTEA BLOB STRING INTEGER INT NOT IS IN NULL LIKE")
_PARAMETER = lazy_pattern(r"[a-z]{2,20}(?:_[a-z]{2,20}){1,3}=.")
#: Words that follow "Bearer" or "Basic" in sentences.
_SCHEME_PROSE = words(
    "a an and are as at auth authentication authorization by credential credentials error expired expires "
    "failed for format from has header headers http in invalid is key method missing must not of on or plan "
    "realm required scheme schemes tests the to token tokens type usage used user value was with"
)
# A UUID or a traceparent is an id: it is matched first so that its digits are not read as a card.
_CARD = lazy_pattern(
    r"(?<![0-9A-Za-z])(?<![0-9]\.)(?:"
    r"(?P<id>[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}(?![0-9A-Za-z])"
    r"|[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?![0-9A-Za-z]))"
    r"|(?P<dotted>[0-9]{4}\.[0-9]{4}\.[0-9]{4}\.[0-9]{4}(?![0-9A-Za-z]))"
    r"|(?P<run>[0-9]++(?:[ \-\u00a0\u2010-\u2013][0-9]++)*+)(?![A-Za-z_])(?!\.[0-9]))"
)
_GROUP = lazy_pattern(r"[0-9]+")
_HAS_CARD = lazy_pattern(r"[0-9]{3}[0-9 \-.\u00a0\u2010-\u2013]{10}")


def redact_private_keys(text: str) -> str:
    """Redact private keys in PEM, also those that were cut."""
    if "PRIVATE KEY" in text:
        text = _PEM.sub(REDACTED, text)
    if "Private-Lines: " in text:
        text = _PUTTY.sub(rf"\1{REDACTED}\n", text)
    if "-----END " in text and "PRIVATE KEY" in text:
        text = _redact_cut_keys(text)
    return _PEM_LINES.sub(_redact_lines, text) if len(text) > _SHORTEST_LINES else text


def _redact_lines(match: re.Match[str]) -> str:
    """Redact lines of base64, unless a certificate or a public key begins or ends with them."""
    lines, text = match.group(), match.string
    around = text[max(0, match.start() - 200) : match.start()] + text[match.end() : match.end() + 100]
    is_public = "CERTIFICATE" in around or "PUBLIC" in around or "base64" in around
    return lines if is_public or not is_mixed(lines[:64]) else REDACTED


def _redact_cut_keys(text: str) -> str:
    """Redact private keys whose first line was cut off, from the end of each back to where no line is base64."""
    out: list[str] = []
    done = 0
    for end in _PEM_END.finditer(text):
        window = text[max(done, end.start() - _MAX_KEY_LENGTH) : end.start()]
        pieces = _LINE_BREAK.split(window)
        kept = len(pieces)
        while kept and (not pieces[kept - 1] or kept % 2 == 0 or _BASE64_LINE.match(pieces[kept - 1])):
            kept -= 1
        start = end.start() - sum(map(len, pieces[kept:]))
        out += (text[done:start], REDACTED)
        done = end.end()
    out.append(text[done:])
    return "".join(out)


def redact_userinfo(text: str) -> str:
    """Redact user and password of every URL, also of one without its scheme."""
    if "://" in text:
        text = _URL_RUN.sub(_redact_userinfo, text)
    if "40" in text and "%" in text:
        text = _ENCODED_USERINFO.sub(rf"\1{REDACTED}", text)
    if "@" in text and ":" in text:
        text = _STRONG_USERINFO.sub(rf"\1{REDACTED}", text)
    return _BARE_USERINFO.sub(rf"\1{REDACTED}", text) if "@" in text else text


def redact_tokens(text: str) -> str:
    """Redact keys of vendors, signed values and password hashes."""
    if "WIFI:" in text:
        text = _WIFI.sub(rf"\1{REDACTED}", text)
    if "::add-mask::" in text:
        text = _ADDED_MASK.sub(rf"\1{REDACTED}", text)
    if "eyJ" in text:
        text = _JWT.sub(REDACTED, text)
    if "*" in text:
        text = _MYSQL_HASH.sub(REDACTED, text)
    if "$" in text or "}" in text:
        text = _PASSWORD_HASH.sub(REDACTED, text)
    if "=" in text and ("?" in text or "&" in text or text.find("=", 1, 16) > 0):
        text = _SHORT_LOGIN.sub(rf"\1{REDACTED}", _SHORT_PARAMETER.sub(_redact_rare, text))
    if _HAS_RUN.search(text):
        text = _KNOWN_TOKENS.sub(REDACTED, text)
        if "ession" in text:
            text = _SESSION_KEY.sub(REDACTED, text)
        if ":" in text or ".eJ" in text:
            text = _SIGNED.sub(_redact_signed, text)
        if "-" in text:
            text = _RESET_TOKEN.sub(REDACTED, text)
    text = _RUN.sub(_redact_named, text)
    if "expected" in text or "got " in text or "received" in text:
        text = _COMPARED.sub(_redact_compared, text)
    return _NUMBERED.sub(_redact_rare, text) if "seal" in text or "ecovery" in text or "hare" in text else text


def redact_schemes(text: str) -> str:
    """Redact what follows `Bearer`, `Basic`, `Token` and their kind."""
    text = _SCHEME.sub(_redact_scheme, text) if _HAS_SCHEME.search(text) else text
    return _RARE_SCHEME.sub(_redact_rare, text) if _HAS_RUN.search(text) else text


def _redact_rare(match: re.Match[str]) -> str:
    value = match.group(2)
    is_random = is_mixed(value) or _HEX.fullmatch(value) or has_random_part(value, _SHORTEST_RANDOM)
    return match.group(1) + REDACTED if is_random else match.group()


def redact_cards(text: str) -> str:
    """Redact card numbers."""
    return _CARD.sub(_redact_card, text) if _HAS_CARD.search(text) else text


def _redact_named(match: re.Match[str]) -> str:
    run, start = match.group().rstrip("."), match.start()
    if not (is_mixed(run) or _HEX.fullmatch(run) or has_random_part(run, _SHORTEST_RANDOM)):
        return match.group()
    before = match.string[max(0, start - _NAME_LENGTH) : start]
    is_named = _NAME_BEFORE.search(before) is not None or (is_mixed(run) and _NAME_FAR.search(before) is not None)
    return REDACTED + match.group()[len(run) :] if is_named else match.group()


def _redact_compared(match: re.Match[str]) -> str:
    opening, first, middle, second = match.groups()
    if not is_random(first):
        return match.group()
    return opening + REDACTED + (middle + (REDACTED if is_random(second) else second) if second else "")


def _redact_signed(match: re.Match[str]) -> str:
    signature = match.group("sig")
    if match.group().partition(":")[0].lower() in _DIGESTS:
        # SHA256:..., the fingerprint of a key
        return match.group()
    if signature is None or match.group("when") is not None or is_mixed(signature):
        return REDACTED
    capitals, small = sum(map(str.isupper, signature)), sum(map(str.islower, signature))
    is_random = capitals > 2 and small > 2 and any(map(str.isdigit, signature))
    return REDACTED if is_random else match.group()


def _luhn(digits: str) -> bool:
    total = 0
    for index, digit in enumerate(reversed(digits)):
        number = ord(digit) - 48
        if index % 2:
            number = number * 2 - 9 if number > 4 else number * 2
        total += number
    return total % 10 == 0


def _redact_card(match: re.Match[str]) -> str:
    """Redact every 13 to 19 digits, of groups of three or more, that pass Luhn.

    No payment card begins with 0 or 1, but every epoch
    timestamp, so those stay. Windows begin and end at a group: the number may
    stand before a date or a CVV.
    """
    text = match.group()
    if match.lastgroup == "id":
        return text
    if match.lastgroup == "dotted":
        return REDACTED if text[0] > "1" and _luhn(text.replace(".", "")) else text
    groups = [(group.start(), group.end()) for group in _GROUP.finditer(text)]
    out: list[str] = []
    done = 0
    index = 0
    while index < len(groups):
        digits = ""
        hit = -1
        if text[groups[index][0]] > "1":
            for later in range(index, min(index + 7, len(groups))):
                start, end = groups[later]
                if end - start > 19:
                    break
                digits += text[start:end]
                if len(digits) > 19:
                    break
                if len(digits) >= 13 and _luhn(digits):
                    hit = later
                if end - start < 3:
                    break
        if hit >= 0:
            out += (text[done : groups[index][0]], REDACTED)
            done = groups[hit][1]
            index = hit + 1
        else:
            index += 1
    if not out:
        return text
    out.append(text[done:])
    return "".join(out)


def _redact_userinfo(match: re.Match[str]) -> str:
    """Redact `user:password@` and `token@` of every URL in a run without white space."""
    parts = match.group().split("://")
    for index in range(1, len(parts)):
        part = parts[index]
        stop = _AUTHORITY_END.search(part)
        authority = part[: stop.start()] if stop else part
        cut = authority.rfind("@")
        if authority[:4] == "git@":
            continue
        if cut < 0 and not authority.startswith("["):
            user, colon, port = authority.partition(":")
            is_port = _PORT.fullmatch(port) is not None or _HOSTS.fullmatch(authority) is not None
            # Not a port: a password with a "/" or a quote in it, or one that was cut off before its "@".
            if colon and (not is_port or not user):
                cut = part.rfind("@")
                if cut < 0 and not is_port:
                    parts[index] = f"{user}:{REDACTED}{part[len(authority) :]}"
                    continue
        if cut >= 0:
            parts[index] = REDACTED + part[cut:]
    return "://".join(parts)


def _redact_scheme(match: re.Match[str]) -> str:
    scheme, space, value = match.groups()
    bare = value.rstrip(".:!?*_`")
    if (value.endswith(":") and bare.isalpha()) or _DIGEST.match(value):
        # Bearer capability: read, digest sha256:...
        return match.group()
    if not any(character.isalnum() for character in bare) or is_placeholder(bare):
        return match.group()
    if bare[0] == "#" and bare[1:].isdigit():
        return match.group()
    if scheme.lower() == "basic" and len(bare) < 12 and bare.isalpha() and bare.islower():
        # No base64 of a name and a password.
        return match.group()
    if scheme.lower() in ("bearer", "basic"):
        if bare.lower() in _SCHEME_PROSE or bare.partition("=")[0].lower() in _SCHEME_PROSE:
            return match.group()
        if _PARAMETER.match(bare) is not None:
            # token_type=bearer expires_in=3600
            return match.group()
    elif (
        (bare.isdigit() and len(bare) < 6)
        or bare in _COLUMN_TYPES
        or (bare.isupper() and bare.isalpha() and len(bare) < 5)
    ):
        # token 12 of 40, token TEXT NOT NULL, TOKEN API token for ...
        return match.group()
    elif (
        len(bare) < 20
        and ((bare := bare.partition("|")[0].replace("/", "")).isalpha() and (bare.islower() or bare.istitle()))
    ) or "=" in bare[:20]:
        # "token expired" is a sentence; "token=..." and "token user=..." are the business of the key rule.
        return match.group()
    return f"{scheme}{space}{REDACTED}"
