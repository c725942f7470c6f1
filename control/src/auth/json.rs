//! Members of a JSON object by their names, and nothing that two readers could read differently.

use std::fmt;

use serde::{
    Deserializer as _,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

/// The values of the members called `names`, in that order. Others are skipped.
///
/// `None` when `text` is not one JSON object alone in UTF-8 (RFC 8259, 8.1; the parser looks only at what it keeps), or has a wanted member twice: which of them counts, no two readers
/// need agree on (RFC 7519, 4).
pub(super) fn members<const N: usize>(text: &[u8], names: [&str; N]) -> Option<[Option<Value>; N]> {
    let mut reader = serde_json::Deserializer::from_str(std::str::from_utf8(text).ok()?);
    let found = reader.deserialize_map(Members { names }).ok()?;
    reader.end().ok()?;
    Some(found)
}

struct Members<'a, const N: usize> {
    names: [&'a str; N],
}

impl<'de, const N: usize> Visitor<'de> for Members<'_, N> {
    type Value = [Option<Value>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [const { None }; N];
        while let Some(name) = map.next_key::<String>()? {
            match self.names.iter().position(|wanted| *wanted == name) {
                Some(at) if found[at].is_some() => return Err(A::Error::custom("twice")),
                Some(at) => found[at] = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_object_with_each_wanted_member_once_is_read() {
        let read = |text: &str| members(text.as_bytes(), ["a", "b"]);
        assert_eq!(read(r#"{"b":[1],"c":2,"c":3}"#), Some([None, Some(serde_json::json!([1]))]));
        for wrong in [r#"{"a":1,"a":1}"#, r#"{"a":1}x"#, r#"{"a":1"#, "[]", "1", "", r#"{"a":1,"\u0061":2}"#]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(members(b"{\"a\":1,\"c\":\"\xff\"}", ["a"]), None, "not UTF-8 where nobody looks");
    }
}
