//! The filter language of containerd's package `filters`.
//!
//! ```text
//! selectors := selector ("," selector)*
//! selector  := fieldpath (operator value)?
//! fieldpath := field ("." field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="
//! value     := quoted | [^\s,]+
//! quoted    := a Go string in "; after ~= also in / or |
//! ```

use std::fmt;

use regex::Regex;

/// Selects objects by their fields: an object matches if one of the texts that the filter was made of matches, and a text
/// matches if each of its selectors does. A filter of no text, and an empty text, match everything.
#[derive(Debug, Clone)]
pub struct Filter(Vec<Vec<Selector>>);

#[derive(Debug, Clone)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// A text is not a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    input: String,
    position: usize,
    message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = self.input.split_at(self.position);
        write!(f, "filter [{before} >|<{after}]: {}", self.message)
    }
}

impl std::error::Error for ParseError {}

impl Filter {
    /// Parses the texts.
    ///
    /// # Errors
    /// [`ParseError`] for the first that is none, also for a regular expression that cannot be compiled.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, ParseError> {
        texts.iter().map(|text| Parser::new(text.as_ref()).selectors()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an object matches. `field` returns the value of a field by its path.
    pub fn matches<'a>(&self, field: impl Fn(&[String]) -> Option<&'a str>) -> bool {
        let matches = |selector: &Selector| {
            let value = field(&selector.path);
            match &selector.test {
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value == Some(wanted),
                Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
                Test::Matches(regex) => regex.is_match(value.unwrap_or_default()),
            }
        };
        self.0.is_empty() || self.0.iter().any(|selectors| selectors.iter().all(matches))
    }
}

struct Parser<'a> {
    input: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(input: &'a str) -> Self {
        Self { input, at: 0 }
    }

    fn selectors(mut self) -> Result<Vec<Selector>, ParseError> {
        let mut selectors = Vec::new();
        if self.input.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            match self.peek() {
                None => return Ok(selectors),
                Some(',') => self.at += 1,
                Some(other) => return Err(self.error(format!("unexpected input {other:?}"))),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, ParseError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.at += 1;
            path.push(self.field()?);
        }
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        self.skip_spaces();
        let operator = self.take(|c| "=!~".contains(c));
        let test = match operator {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => {
                let regex = Regex::new(&self.value(true)?);
                Test::Matches(regex.map_err(|error| self.error(error.to_string()))?)
            }
            _ => return Err(self.error(r#"expected an operator ("=="|"!="|"~=")"#)),
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, ParseError> {
        self.skip_spaces();
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(c) if is_field(c) => Ok(self.take(is_field).to_owned()),
            _ => Err(self.error("expected field or quoted")),
        }
    }

    fn value(&mut self, is_regex: bool) -> Result<String, ParseError> {
        self.skip_spaces();
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(quote @ ('/' | '|')) if is_regex => self.quoted(quote),
            Some('/' | '|') => Err(self.error("invalid quote encountered")),
            Some(c) if !".=!~".contains(c) && is_value(c) => Ok(self.take(is_value).to_owned()),
            _ => Err(self.error("expected value or quoted")),
        }
    }

    /// A Go string from its opening quote on.
    fn quoted(&mut self, quote: char) -> Result<String, ParseError> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.next() {
                None | Some('\n') => return Err(self.error("quoted literal not terminated")),
                Some(c) if c == quote => break,
                Some('\\') => self.escape(quote, &mut bytes)?,
                Some(c) => push(&mut bytes, c),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.error("the quoted value is not UTF-8"))
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), ParseError> {
        let escaped = self.next();
        let simple = match escaped {
            Some('a') => 0x07,
            Some('b') => 0x08,
            Some('f') => 0x0c,
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('v') => 0x0b,
            Some('\\') => b'\\',
            Some(c) if c == quote => {
                push(bytes, c);
                return Ok(());
            }
            Some('0'..='7') => {
                self.at -= 1;
                let value = self.digits(8, 3)?;
                u8::try_from(value).map_err(|_| self.error("illegal numeric escape sequence"))?
            }
            Some('x') => u8::try_from(self.digits(16, 2)?).unwrap_or_default(),
            Some(kind @ ('u' | 'U')) => {
                let value = self.digits(16, if kind == 'u' { 4 } else { 8 })?;
                if value > u32::from(char::MAX) {
                    return Err(self.error("illegal numeric escape sequence"));
                }
                // As Go: half of a surrogate pair is the replacement character.
                push(bytes, char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER));
                return Ok(());
            }
            _ => return Err(self.error("illegal escape sequence")),
        };
        bytes.push(simple);
        Ok(())
    }

    fn digits(&mut self, base: u32, count: usize) -> Result<u32, ParseError> {
        (0..count).try_fold(0u32, |value, _| {
            let digit = self.next().and_then(|c| c.to_digit(base));
            let digit = digit.ok_or_else(|| self.error("illegal numeric escape sequence"))?;
            Ok(value.wrapping_mul(base).wrapping_add(digit))
        })
    }

    fn peek(&self) -> Option<char> {
        self.input[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.input[self.at..];
        let taken = &rest[..rest.find(|c| !belongs(c)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    fn skip_spaces(&mut self) {
        self.take(char::is_whitespace);
    }

    fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError { input: self.input.to_owned(), position: self.at, message: message.into() }
    }
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn is_field(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

fn is_value(c: char) -> bool {
    c != ',' && !c.is_whitespace() && !c.is_control()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn matches(text: &str) -> Result<bool, ParseError> {
        let labels = BTreeMap::from([("foo", "bar"), ("a.b/c d", "x,y"), ("empty", "")]);
        Ok(Filter::parse(&[text])?.matches(|path| match path.split_first()? {
            (first, []) if first == "name" => Some("/w/key one"),
            (first, rest) if first == "labels" => labels.get(&*rest.join(".")).copied(),
            _ => None,
        }))
    }

    #[test]
    fn selectors_match_as_containerd_says() {
        let yes = [
            "",
            "name",
            r#"name=="/w/key one""#,
            "name!=other",
            "name~=/key/",
            "name~=|^.w.key|",
            "name ~= one$",
            r#"name~="\\s""#,
            "labels.foo",
            "labels.foo==bar,name",
            r#"labels."foo"==bar"#,
            r#"labels."a.b/c d"=="x,y""#,
            "labels.empty==\"\"",
            "labels.none!=x",
            r#"labels.foo=="\x62\u0061\162""#,
            "labels.foo==bar,\tname",
            "labels.none~=^$",
        ];
        for text in yes {
            assert_eq!(matches(text), Ok(true), "{text}");
        }
        for text in ["labels.none", "nothing==x", "name==key", "labels.foo,labels.none", "labels.none==\"\""]
        {
            assert_eq!(matches(text), Ok(false), "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_an_error() {
        let bad = [
            ",",
            "name,",
            "name==",
            "name=x",
            "name===x",
            "name<x",
            "name==/a/",
            "name==|a|",
            "name~=(",
            "name==a b",
            ".name",
            "name.",
            "na-me",
            "name==\"a",
            "name==\"a\nb\"",
            r#"name=="\q""#,
            r#"name=="\x6""#,
            r#"name=="\400""#,
            r#"name=="\U00110000""#,
            r#"name=="\xff""#,
            "name x",
            "/name/==x",
            " ",
        ];
        for text in bad {
            assert!(matches(text).is_err(), "{text}");
        }
        let error = matches("name==a b").unwrap_err().to_string();
        assert_eq!(error, "filter [name==a >|< b]: unexpected input ' '");
    }

    #[test]
    fn one_text_of_several_is_enough() {
        let filter = Filter::parse(&["name==a", "name==b"]).unwrap();
        for (name, matches) in [("a", true), ("b", true), ("c", false)] {
            assert_eq!(filter.matches(|_| Some(name)), matches);
        }
        assert!(Filter::parse::<&str>(&[]).unwrap().matches(|_| None));
    }

    fn quote(text: &str) -> String {
        text.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect()
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ -~\u{e9}\n\\\\\"/|=!~.,]{0,30}|\\PC{0,20}") {
            drop(matches(&text).map_err(|error| error.to_string()));
        }

        #[test]
        fn what_is_quoted_is_found(key in "\\PC{1,12}", value in ".{0,12}", other in ".{0,12}") {
            let text = format!("labels.\"{}\"==\"{}\"", quote(&key), quote(&value));
            let filter = Filter::parse(&[&text]).unwrap();
            let path = ["labels".to_owned(), key];
            prop_assert!(filter.matches(|asked| (asked == path).then_some(&value)));
            prop_assert_eq!(filter.matches(|_| Some(&other)), value == other);
        }

        #[test]
        fn bare_values_are_what_they_are(value in "[A-Za-z0-9_:-][A-Za-z0-9_:@./=-]{0,20}") {
            let filter = Filter::parse(&[format!("parent=={value},name!={value}")]).unwrap();
            let field = |path: &[String]| if path == ["parent"] { Some(value.as_str()) } else { None };
            prop_assert!(filter.matches(field));
        }
    }
}
