"""Made-up secrets, assembled when they are needed: none of them stands in a file, so no scanner of secrets finds one.

Every fake is drawn from a seeded generator, so that no rule can be fitted to a literal text.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable

_LETTERS = string.ascii_letters
_ALNUM = string.ascii_letters + string.digits
_UPPER = string.ascii_uppercase + string.digits
_URL64 = _ALNUM + "-_"
_HEX = "0123456789abcdef"


class Fakes:
    """Draws fake secrets by the name of their form. `names()` lists the forms."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)

    @staticmethod
    def names() -> list[str]:
        return sorted(name[1:] for name in vars(Fakes) if name.startswith("_") and name[1].isalpha())

    def draw(self, name: str) -> str:
        make: Callable[[], str] = getattr(self, "_" + name)
        return make()

    def chars(self, alphabet: str, length: int) -> str:
        return "".join(self._random.choice(alphabet) for _ in range(length))

    def mixed(self, alphabet: str, length: int) -> str:
        """Characters with a digit, a capital and a small letter among them, a letter first and an alphanumeric last."""
        body = list(self.chars(alphabet, length - 5))
        for extra in (self.chars("23456789", 1), self.chars("ABCDEFGH", 1), self.chars("qwxyz", 1)):
            body.insert(self._random.randrange(len(body) + 1), extra)
        return self.chars("KQXZkqxz", 1) + "".join(body) + self.chars("37kq", 1)

    # Words that a rule can know by their surroundings alone.
    def _word(self) -> str:
        return "qx" + self.chars(string.ascii_lowercase, 7)

    def _human(self) -> str:
        """A word with a capital, a number and a mark, as people make them."""
        return self._word().capitalize() + self.chars("23456789", 2) + self.chars("!#", 1)

    def _phrase(self) -> str:
        return " ".join("q" + self.chars(string.ascii_lowercase, 4) for _ in range(4))

    def _pass(self) -> str:
        return self.mixed(_ALNUM, 10)

    def _hard(self) -> str:
        return "".join((self.mixed(_ALNUM, 6), self.chars("!#$%*+^~", 1), self.mixed(_ALNUM, 6)))

    def _pin(self) -> str:
        return "7" + self.chars("123456789", 5)

    def _hex(self) -> str:
        return self.chars(_HEX, 30) + "a7"

    def _hex64(self) -> str:
        return self.chars(_HEX, 62) + "b3"

    def _b64(self) -> str:
        return base64.b64encode(self._random.randbytes(32)).decode()

    def _url64(self) -> str:
        return self.mixed(_URL64, 43)

    def _opaque(self) -> str:
        return self.mixed(_ALNUM, 32)

    def _short(self) -> str:
        return self.mixed(_ALNUM, 16)

    def _uuid(self) -> str:
        return "-".join(self.chars(_HEX, n) for n in (8, 4, 4, 4, 12))

    def _card(self) -> str:
        digits = "4" + self.chars("0123456789", 14)
        total = 0
        for index, digit in enumerate(reversed(digits)):
            number = int(digit) * (2 - index % 2)
            total += number - 9 if number > 9 else number
        return digits + str(-total % 10)

    # Structured values.
    def _segment(self, content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    def _jwt(self) -> str:
        head = self._segment({"alg": "HS256", "typ": "JWT"})
        return f"{head}.{self._segment({'sub': self.chars(_HEX, 12)})}.{self.mixed(_URL64, 43)}"

    def _jwe(self) -> str:
        head = self._segment({"alg": "dir", "enc": "A256GCM"})
        return f"{head}..{self.mixed(_URL64, 16)}.{self.mixed(_URL64, 60)}.{self.mixed(_URL64, 22)}"

    def _pem(self) -> str:
        return self.pem("RSA PRIVATE KEY", "\n")

    def _pem_escaped(self) -> str:
        return self.pem("EC PRIVATE KEY", "\\n")

    def pem(self, name: str, newline: str) -> str:
        """The body of a private key; the words around it are added by `framed`."""
        return newline.join(self.mixed(_ALNUM + "+/", 64) for _ in range(6)) + newline + self.mixed(_ALNUM, 24)

    def _django_signed(self) -> str:
        return f"{self._segment({'u': 12})}:1{self.mixed(_ALNUM, 5)}:{self.mixed(_URL64, 43)}"

    def _django_compressed(self) -> str:
        return f".eJx{self.mixed(_URL64, 40)}:1{self.mixed(_ALNUM, 5)}:{self.mixed(_URL64, 43)}"

    def _django_short(self) -> str:
        """`Signer().sign("12")`: value and signature."""
        return f"{self.chars('123456789', 3)}:{self.mixed(_URL64, 43)}"

    def _django_timed(self) -> str:
        return f"{self.chars('123456789', 3)}:1{self.mixed(_ALNUM, 5)}:{self.mixed(_URL64, 43)}"

    def _django_hash(self) -> str:
        return f"pbkdf2_sha256$600000${self.mixed(_ALNUM, 22)}${self._b64()}"

    def _bcrypt(self) -> str:
        return f"$2b$12${self.mixed(_ALNUM + './', 53)}"

    def _argon2(self) -> str:
        return f"$argon2id$v=19$m=65536,t=3,p=4${self.mixed(_ALNUM, 22)}${self.mixed(_ALNUM + '+/', 43)}"

    def _sha512crypt(self) -> str:
        return f"$6${self.mixed(_ALNUM, 16)}${self.mixed(_ALNUM + './', 86)}"

    def _reset(self) -> str:
        return f"c{self.chars(string.ascii_lowercase + string.digits, 5)}-{self._hex()}"

    # Vendors.
    def _github(self) -> str:
        return "gh" + "p_" + self.mixed(_ALNUM, 36)

    def _github_fine(self) -> str:
        return "github" + "_pat_" + self.mixed(_ALNUM, 22) + "_" + self.mixed(_ALNUM, 59)

    def _gitlab(self) -> str:
        return "gl" + "pat-" + self.mixed(_ALNUM, 20)

    def _gitlab_deploy(self) -> str:
        return "gl" + "dt-" + self.mixed(_ALNUM, 20)

    def _aws_id(self) -> str:
        return "AK" + "IA" + self.chars("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16)

    def _aws_secret(self) -> str:
        return self.mixed(_ALNUM + "+/", 40)

    def _stripe(self) -> str:
        return "sk" + "_live_" + self.mixed(_ALNUM, 24)

    def _stripe_hook(self) -> str:
        return "wh" + "sec_" + self.mixed(_ALNUM, 32)

    def _slack(self) -> str:
        return "xo" + f"xb-{self.chars('123456789', 12)}-{self.chars('123456789', 12)}-{self.mixed(_ALNUM, 24)}"

    def _slack_app(self) -> str:
        return "xa" + f"pp-1-A{self.chars(_UPPER, 10)}-{self.chars('123456789', 13)}-{self._hex64()}"

    def _slack_hook(self) -> str:
        return f"T{self.chars(_UPPER, 9)}/B{self.chars(_UPPER, 10)}/{self.mixed(_ALNUM, 24)}"

    def _google(self) -> str:
        return "AI" + "za" + self.mixed(_URL64, 35)

    def _google_oauth(self) -> str:
        return "GOC" + "SPX-" + self.mixed(_URL64, 28)

    def _google_access(self) -> str:
        return "ya" + "29.a0" + self.mixed(_URL64, 80)

    def _npm(self) -> str:
        return "np" + "m_" + self.mixed(_ALNUM, 36)

    def _pypi(self) -> str:
        return "py" + "pi-AgEI" + self.mixed(_URL64, 80)

    def _sendgrid(self) -> str:
        return "S" + f"G.{self.mixed(_URL64, 22)}.{self.mixed(_URL64, 43)}"

    def _twilio(self) -> str:
        return "S" + "K" + self._hex()

    def _mailgun(self) -> str:
        return "ke" + "y-" + self._hex()

    def _mailchimp(self) -> str:
        return f"{self._hex()}-us{self.chars('123456789', 1)}"

    def _openai(self) -> str:
        return "sk" + "-proj-" + self.mixed(_URL64, 48)

    def _anthropic(self) -> str:
        return "sk" + "-ant-api03-" + self.mixed(_URL64, 60)

    def _huggingface(self) -> str:
        return "h" + "f_" + self.mixed(_LETTERS + "23", 34)

    def _digitalocean(self) -> str:
        return "do" + "p_v1_" + self._hex64()

    def _shopify(self) -> str:
        return "shp" + "at_" + self._hex()

    def _square(self) -> str:
        return "EA" + "AAE" + self.mixed(_URL64, 59)

    def _telegram(self) -> str:
        return f"{self.chars('123456789', 10)}:AA{self.mixed(_URL64, 33)}"

    def _discord_bot(self) -> str:
        return f"MT{self.mixed(_ALNUM, 22)}.{self.mixed(_ALNUM, 6)}.{self.mixed(_URL64, 38)}"

    def _discord_hook(self) -> str:
        return f"{self.chars('123456789', 18)}/{self.mixed(_URL64, 68)}"

    def _teams_hook(self) -> str:
        return f"{self._uuid()}@{self._uuid()}/IncomingWebhook/{self._hex()}/{self._uuid()}"

    def _sentry(self) -> str:
        return "sn" + "trys_" + self.mixed(_URL64, 60)

    def _grafana(self) -> str:
        return "gl" + "sa_" + self.mixed(_ALNUM, 32) + "_" + self.chars(_HEX, 8)

    def _vault(self) -> str:
        return "hv" + "s." + self.mixed(_URL64, 90)

    def _databricks(self) -> str:
        return "da" + "pi" + self._hex()

    def _linear(self) -> str:
        return "lin" + "_api_" + self.mixed(_ALNUM, 40)

    def _age(self) -> str:
        return "AGE" + "-SECRET-KEY-1" + self.chars("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58)

    def _docker(self) -> str:
        return "dck" + "r_pat_" + self.mixed(_URL64, 27)

    def _newrelic(self) -> str:
        return "NR" + "AK-" + self.chars(_UPPER, 27)

    def _postman(self) -> str:
        return "PM" + "AK-" + self.chars(_HEX, 24) + "-" + self.chars(_HEX, 34)

    def _atlassian(self) -> str:
        return "ATA" + "TT3xFfGF0" + self.mixed(_URL64, 60)

    def _azure_sas(self) -> str:
        return self._b64().replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")

    # Of the vendors' documents, for the texts that are held out.
    def _airtable(self) -> str:
        return "pa" + f"t{self.mixed(_ALNUM, 14)}.{self._hex64()}"

    def _mapbox(self) -> str:
        return "s" + f"k.{self._segment({'u': 'bob', 'a': self.chars(_HEX, 20)})}.{self.mixed(_URL64, 22)}"

    def _dropbox(self) -> str:
        return "s" + "l.B" + self.mixed(_URL64, 130)

    def _azure_ad(self) -> str:
        return f"{self.mixed(_ALNUM, 3 + 5)[:3]}8Q~{self.mixed(_ALNUM + '-._~', 34)}"

    def _plaid(self) -> str:
        return "access-" + f"production-{self._uuid()}"

    def _razorpay(self) -> str:
        return "rz" + "p_live_" + self.mixed(_ALNUM, 14)

    def _braintree(self) -> str:
        return "access_" + f"token$production${self.chars(_HEX, 16)}${self._hex()}"

    def _flutterwave(self) -> str:
        return "FLW" + f"SECK-{self._hex()}-X"

    def _mailersend(self) -> str:
        return "ml" + "sn." + self._hex64()

    def _launchdarkly(self) -> str:
        return "sd" + f"k-{self._uuid()}"

    def _supabase(self) -> str:
        return "sb" + "p_" + self.chars(_HEX, 40)

    def _fly(self) -> str:
        return "fm" + "2_lJPECAAAAAAA" + self._b64() + self._b64()

    def _tailscale(self) -> str:
        return "tsk" + f"ey-auth-k{self.mixed(_ALNUM, 12)}CNTRL-{self.mixed(_ALNUM, 32)}"

    def _dynatrace(self) -> str:
        return "dt" + f"0c01.{self.chars(_UPPER, 24)}.{self.chars(_UPPER, 64)}"

    def _honeycomb(self) -> str:
        return "hca" + "ik_01" + self.chars(string.ascii_lowercase + string.digits, 58)

    def _jfrog(self) -> str:
        return "AKC" + "p8" + self.mixed(_ALNUM, 68)

    def _sonar(self) -> str:
        return "sq" + "u_" + self.chars(_HEX, 40)

    def _notion(self) -> str:
        return "nt" + "n_" + self.mixed(_ALNUM, 46)

    def _figma(self) -> str:
        return "fi" + "gd_" + self.mixed(_URL64, 40)

    def _pulumi(self) -> str:
        return "pu" + "l-" + self.chars(_HEX, 40)

    def _circleci(self) -> str:
        return "CCI" + f"PAT_{self.mixed(_ALNUM, 22)}_{self.chars(_HEX, 40)}"

    def _planetscale(self) -> str:
        return "psc" + "ale_tkn_" + self.mixed(_URL64, 43)

    def _doppler(self) -> str:
        return "dp" + ".pt." + self.mixed(_ALNUM, 43)

    def _heroku(self) -> str:
        return "HRK" + f"U-AA{self.mixed(_URL64, 58)}"

    def _okta(self) -> str:
        return "00" + self.mixed(_URL64, 40)

    def _cratesio(self) -> str:
        return "ci" + "o" + self.mixed(_ALNUM, 32)

    def _groq(self) -> str:
        return "gs" + "k_" + self.mixed(_ALNUM, 52)

    def _replicate(self) -> str:
        return "r8" + "_" + self.mixed(_ALNUM, 37)

    def _yandex(self) -> str:
        return "AQ" + "VN" + self.mixed(_URL64, 36)

    def _facebook(self) -> str:
        return "EA" + "ACEdEose0cBA" + self.mixed(_ALNUM, 120)

    def _twitter_bearer(self) -> str:
        return "AAAAAAAAAAAAAAAAAAAAA" + self.mixed(_ALNUM + "%", 80)

    def _scrypt(self) -> str:
        return f"scrypt$16384${self.mixed(_ALNUM, 22)}$8$1${self._b64()}"

    def _mysql_hash(self) -> str:
        return "*" + self.chars("0123456789ABCDEF", 40)

    def _phc(self) -> str:
        return f"$scrypt$ln=17,r=8,p=1${self.mixed(_ALNUM, 22)}${self.mixed(_ALNUM + '+/', 43)}"

    def _paseto(self) -> str:
        return "v4" + ".local." + self.mixed(_URL64, 120)

    def _macaroon(self) -> str:
        return "MDAx" + self.mixed(_URL64, 120)

    def _fernet(self) -> str:
        return "gAAAAAB" + self.mixed(_URL64, 110)

    def _wireguard(self) -> str:
        return self._b64()

    def _mnemonic(self) -> str:
        return " ".join("q" + self.chars(string.ascii_lowercase, 5) for _ in range(12))

    # Personal data, redacted on demand.
    def _email(self) -> str:
        return f"{self._word()}.{self.chars(string.ascii_lowercase, 6)}@mail.example"

    def _phone(self) -> str:
        return f"+49 30 {self.chars('123456789', 4)} {self.chars('123456789', 4)}"

    def _ip(self) -> str:
        return f"203.0.113.{self._random.randrange(1, 255)}"
