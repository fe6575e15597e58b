//! JSON objects that have to be objects. What serde derives for a struct takes a list of the fields' values, too,
//! and the description of the API knows of no such lists.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A `T`, from an object and nothing else.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, such as {}")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// A field that is an object or null.
pub(super) fn optional<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let object = Option::<Object<T>>::deserialize(deserializer)?;
    Ok(object.map(|Object(value)| value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::DiskPatch;

    #[test]
    fn a_list_is_not_an_object() {
        let parse = |text: &str| serde_json::from_str::<Object<DiskPatch>>(text);
        let Object(patch) =
            parse("{\"rates\":{\"read\":{\"burst_ms\":7},\"write\":null}}").unwrap();
        assert_eq!(patch.rates.unwrap().read.unwrap().burst_ms, Some(7));
        for text in ["[]", "null", "7", "{\"rates\":[]}", "{\"rates\":{\"read\":[]}}"] {
            let error = parse(text).map(|Object(patch)| patch).unwrap_err().to_string();
            assert!(error.contains("an object"), "{text}: {error}");
        }
        assert!(parse("{\"rates\":{\"reads\":{}}}").is_err(), "an unknown field");
    }
}
