"""Generated mathematics: exercises of school arithmetic and algebra with every step worked out.

Document i is a function of (seed, i): one sheet of exercises, its topics and numbers drawn from a generator
of its own. Steps follow rules that a small model can learn (a sum per column, the next line of Euclid); long
products it will not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import gcd
from random import Random

from bam_core.protocols import Document

VERSION = 1
"""Raised when the same seed would give other text."""

EXERCISES_PER_SHEET = 5

NAMES = (
    *("Ada", "Amir", "Bela", "Chen", "Dora", "Emil", "Farah", "Goran", "Hana", "Ines"),
    *("Jonas", "Kofi", "Lena", "Mina", "Nils", "Olga", "Pavel", "Rosa", "Sven", "Tariq"),
)
THINGS = (
    *("apples", "books", "candles", "coins", "cards", "eggs", "keys", "lamps"),
    *("marbles", "nails", "oranges", "pens", "roses", "shells", "stamps", "tickets"),
)


def read_exercises(documents: int, seed: int = 0) -> Iterator[Document]:
    """Sheets 0 to documents - 1."""
    for number in range(documents):
        random = Random(f"exercises {seed} {number}")  # a string seeds by its sha512, the same everywhere
        topics = [random.choice(TOPICS) for _ in range(EXERCISES_PER_SHEET)]
        yield Document("\n".join(topic(random) for topic in topics), f"exercise sheet {number}")


def _number(random: Random, most_digits: int) -> int:
    """A positive number, all lengths equally often."""
    return random.randrange(1, 10 ** random.randint(1, most_digits))


def _signed(value: int) -> str:
    return f"+ {value}" if value >= 0 else f"- {-value}"


def _term(coefficient: int, symbol: str = "x") -> str:
    return {1: symbol, -1: f"-{symbol}"}.get(coefficient, f"{coefficient}{symbol}")


def addition(random: Random) -> str:
    a, b = _number(random, 5), _number(random, 5)
    lines, carry = [f"Add {a} and {b}."], 0
    width = max(len(str(a)), len(str(b)))
    for place, (x, y) in enumerate(zip(reversed(f"{a:0{width}}"), reversed(f"{b:0{width}}"), strict=True)):
        total = int(x) + int(y) + carry
        carried = f" + {carry}" if carry else ""
        lines.append(f"Column {place + 1}: {x} + {y}{carried} = {total}, write {total % 10}, carry {total // 10}.")
        carry = total // 10
    return "\n".join([*lines, f"So {a} + {b} = {a + b}.\n"])


def subtraction(random: Random) -> str:
    b, difference = _number(random, 4), _number(random, 4)
    a = b + difference
    name, things = random.choice(NAMES), random.choice(THINGS)
    return (
        f"{name} has {a} {things} and gives away {b}. How many {things} are left?\n"
        f"{a} - {b} = {difference}, because {b} + {difference} = {a}.\nAnswer: {difference} {things}.\n"
    )


def multiplication(random: Random) -> str:
    a, b = random.randint(2, 99), random.randint(11, 999)
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(b))) if digit != "0"][::-1]
    products = [f"{a} * {part} = {a * part}" for part in parts]
    total = " + ".join(str(a * part) for part in parts)
    split = " + ".join(map(str, parts))
    return "\n".join(
        [
            f"Multiply {a} by {b}.",
            f"{b} = {split}.",
            *products,
            f"{total} = {a * b}",
            f"{a} * {b} = {a * b}.\n",
        ]
    )


def division(random: Random) -> str:
    divisor, dividend = random.randint(2, 25), _number(random, 4) + 9
    lines, rest, quotient = [f"Divide {dividend} by {divisor} with remainder."], 0, ""
    for digit in str(dividend):
        current = rest * 10 + int(digit)
        times, rest = divmod(current, divisor)
        quotient += str(times)
        lines.append(f"Bring down {digit}: {current} = {times} * {divisor} + {rest}.")
    answer = f"{dividend} = {int(quotient)} * {divisor} + {rest}"
    return "\n".join([*lines, f"Quotient {int(quotient)}, remainder {rest}: {answer}.\n"])


def greatest_common_divisor(random: Random) -> str:
    common = random.randint(1, 12)
    a, b = sorted((common * random.randint(2, 60), common * random.randint(2, 60)), reverse=True)
    lines, x, y = [f"Find the greatest common divisor of {a} and {b} by the algorithm of Euclid."], a, b
    while y:
        lines.append(f"{x} = {x // y} * {y} + {x % y}")
        x, y = y, x % y
    return "\n".join([*lines, f"The last divisor is {x}, so gcd({a}, {b}) = {x}.\n"])


def linear_equation(random: Random) -> str:
    x, a, b = random.randint(-12, 12), random.randint(2, 12), random.randint(-30, 30)
    c = a * x + b
    move = f"Subtract {b} from" if b >= 0 else f"Add {-b} to"
    return (
        f"Solve {a}x {_signed(b)} = {c}.\n{move} both sides: {a}x = {c - b}.\n"
        f"Divide by {a}: x = {x}.\nCheck: {a} * ({x}) {_signed(b)} = {a * x} {_signed(b)} = {c}.\n"
    )


def equation_with_two_sides(random: Random) -> str:
    x, c, more = random.randint(-9, 9), random.randint(1, 8), random.randint(1, 8)
    a, b = c + more, random.randint(-20, 20)
    d = a * x + b - c * x
    return (
        f"Solve {a}x {_signed(b)} = {_term(c)} {_signed(d)}.\n"
        f"Bring x to the left: {_term(more)} {_signed(b)} = {d}.\n"
        f"Bring numbers to the right: {_term(more)} = {d - b}.\nTherefore x = {d - b} / {more} = {x}.\n"
    )


def simultaneous_equations(random: Random) -> str:
    x, y, a, b = random.randint(-9, 9), random.randint(-9, 9), random.randint(2, 7), random.randint(2, 7)
    total, second = x + y, a * x - b * y
    return (
        f"Solve the system x + y = {total} and {a}x - {b}y = {second}.\n"
        f"From the first, y = {total} - x. Put it into the second: {a}x - {b}({total} - x) = {second}.\n"
        f"{a + b}x = {second} {_signed(b * total)} = {second + b * total}, so x = {x}.\n"
        f"y = {total} - ({x}) = {y}.\n"
    )


def fraction_sum(random: Random) -> str:
    a, b, c, d = (random.randint(1, 11), random.randint(2, 12), random.randint(1, 11), random.randint(2, 12))
    common = b * d // gcd(b, d)
    left, right = a * common // b, c * common // d
    result = Fraction(left + right, common)
    return (
        f"Add {a}/{b} and {c}/{d}.\nThe least common denominator of {b} and {d} is {common}.\n"
        f"{a}/{b} = {left}/{common} and {c}/{d} = {right}/{common}.\n"
        f"{left}/{common} + {right}/{common} = {left + right}/{common} = {result}.\n"
    )


def percentage(random: Random) -> str:
    rate, base = random.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 75)), random.randint(1, 60) * 20
    part, name, things = rate * base // 100, random.choice(NAMES), random.choice(THINGS)
    return (
        f"{name} counts {base} {things}; {rate} percent of them are old, the others new. How many of each?\n"
        f"One percent of {base} is {Fraction(base, 100)}. {rate} percent is {rate} * {base} / 100 = {part}.\n"
        f"New: {base} - {part} = {base - part}.\nAnswer: {part} old and {base - part} new {things}.\n"
    )


def price(random: Random) -> str:
    name, things = random.choice(NAMES), random.choice(THINGS)
    count, each = random.randint(2, 12), random.randint(2, 30)
    paid = -(-count * each // 50) * 50
    return (
        f"{name} buys {count} {things} at {each} crowns each and pays with {paid}. How much comes back?\n"
        f"The {things} cost {count} * {each} = {count * each} crowns.\n"
        f"{paid} - {count * each} = {paid - count * each}.\nAnswer: {paid - count * each} crowns.\n"
    )


def expansion(random: Random) -> str:
    a, b = random.randint(-9, 9) or 1, random.randint(-9, 9) or 2
    product = f"x^2 {_signed(b)}x {_signed(a)}x {_signed(a * b)}"
    return (
        f"Expand (x {_signed(a)})(x {_signed(b)}).\nMultiply every term by every term: {product}.\n"
        f"Collect: x^2 {_signed(a + b)}x {_signed(a * b)}.\n"
    )


def quadratic(random: Random) -> str:
    a, b = random.randint(-9, 9), random.randint(-9, 9)
    return (
        f"Solve x^2 {_signed(-(a + b))}x {_signed(a * b)} = 0.\n"
        f"Two numbers with sum {a + b} and product {a * b} are {a} and {b}.\n"
        f"(x {_signed(-a)})(x {_signed(-b)}) = 0, so x = {a} or x = {b}.\n"
    )


def sequence(random: Random) -> str:
    start, step = random.randint(-20, 50), random.randint(2, 15) * random.choice((1, -1))
    terms, n = [start + step * i for i in range(5)], random.randint(10, 60)
    return (
        f"A sequence begins {', '.join(map(str, terms))}. What is term number {n}?\n"
        f"The difference is {terms[1]} - ({terms[0]}) = {step}. Term n is {start} + (n - 1) * ({step}).\n"
        f"{start} + {n - 1} * ({step}) = {start} {_signed((n - 1) * step)} = {start + (n - 1) * step}.\n"
    )


def prime_factors(random: Random) -> str:
    number = rest = random.randint(12, 900)
    lines, factors, divisor = [f"Write {number} as a product of primes."], [], 2
    while divisor * divisor <= rest:
        if rest % divisor:
            divisor += 1
            continue
        lines.append(f"{rest} = {divisor} * {rest // divisor}")
        factors.append(divisor)
        rest //= divisor
    factors.append(rest)
    ending = f"{number} is prime." if len(factors) == 1 else f"{number} = {' * '.join(map(str, factors))}."
    return "\n".join([*lines, ending + "\n"])


def derivative(random: Random) -> str:
    powers = sorted(random.sample(range(2, 8), 2), reverse=True)
    a, b, c = random.randint(2, 9), random.randint(2, 9), random.randint(-9, 9)
    p, q = powers
    first, second = f"{a * p}x^{p - 1}", f"{b * q}x" + (f"^{q - 1}" if q > 2 else "")
    return (
        f"Differentiate f(x) = {a}x^{p} + {b}x^{q} {_signed(c)}.\n"
        f"The derivative of x^n is n x^(n-1), of a constant 0: {a} * {p} = {a * p} and {b} * {q} = {b * q}.\n"
        f"f'(x) = {first} + {second}.\n"
    )


def binary(random: Random) -> str:
    number = random.randint(5, 255)
    lines, rest = [f"Write {number} in binary."], number
    while rest:
        lines.append(f"{rest} = 2 * {rest // 2} + {rest % 2}")
        rest //= 2
    return "\n".join([*lines, f"Read the remainders from the bottom: {number} is {number:b} in binary.\n"])


def average(random: Random) -> str:
    values = [random.randint(1, 60) for _ in range(random.randint(3, 6))]
    total = " + ".join(map(str, values))
    return (
        f"Find the average of {', '.join(map(str, values))}.\nThe sum is {total} = {sum(values)}.\n"
        f"Divide by their count: {sum(values)} / {len(values)} = {Fraction(sum(values), len(values))}.\n"
    )


def rectangle(random: Random) -> str:
    a, b = random.randint(2, 40), random.randint(2, 40)
    return (
        f"A rectangle is {a} cm long and {b} cm wide. Find its perimeter and its area.\n"
        f"Perimeter: 2 * ({a} + {b}) = 2 * {a + b} = {2 * (a + b)} cm.\n"
        f"Area: {a} * {b} = {a * b} square cm.\n"
    )


def residue(random: Random) -> str:
    base, modulus, exponent = random.randint(2, 9), random.randint(3, 13), random.randint(3, 7)
    lines, value = [f"Find the remainder of {base}^{exponent} divided by {modulus}."], 1
    for power in range(1, exponent + 1):
        product, value = value * base, value * base % modulus
        lines.append(f"{base}^{power}: {product} leaves {value}")
    return "\n".join([*lines, f"The remainder is {value}.\n"])


TOPICS: tuple[Callable[[Random], str], ...] = (
    *(addition, subtraction, multiplication, division, greatest_common_divisor, linear_equation),
    *(equation_with_two_sides, simultaneous_equations, fraction_sum, percentage, price, expansion, quadratic),
    *(sequence, prime_factors, derivative, binary, average, rectangle, residue),
)
"""A new topic goes at the end, and raises VERSION."""
