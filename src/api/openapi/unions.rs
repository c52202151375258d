//! Types told apart by `type`, as one object each and a discriminator.
//!
//! The derive composes a variant of a struct (which refuses unknown fields) and an object with the
//! `type`: nothing can satisfy both. Variants with fields of their own it leaves without a name.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::openapi::schema::{Object, OneOf};
use utoipa::openapi::{Components, Discriminator, Ref, RefOr, Schema};

/// Describes the tagged enums of the domain as clients read them.
pub fn tell_apart(components: &mut Components) {
    for name in ["Tool", "Part"] {
        if let Some(RefOr::T(Schema::OneOf(union))) = components.schemas.remove(name) {
            let union = told_apart(name, union, &mut components.schemas);
            components.schemas.insert(name.to_owned(), RefOr::T(Schema::OneOf(union)));
        }
    }
}

fn told_apart(
    name: &str,
    mut union: OneOf,
    schemas: &mut BTreeMap<String, RefOr<Schema>>,
) -> OneOf {
    let mut discriminator = Discriminator::new("type");
    for item in &mut union.items {
        let Some((tag, component)) = variant(name, item, schemas) else { continue };
        let reference = Ref::from_schema_name(component);
        discriminator.mapping.insert(tag, reference.ref_location.clone());
        *item = RefOr::Ref(reference);
    }
    union.discriminator = Some(discriminator);
    union
}

/// A variant's tag and the name of its component, which has the tag among its fields from here on.
fn variant(
    name: &str,
    item: &RefOr<Schema>,
    schemas: &mut BTreeMap<String, RefOr<Schema>>,
) -> Option<(String, String)> {
    match item {
        RefOr::T(Schema::Object(object)) => {
            let tag = tag(object)?;
            let component = format!("{}{name}", capitalised(&tag));
            schemas.insert(component.clone(), object.clone().into());
            Some((tag, component))
        }
        RefOr::T(Schema::AllOf(parts)) => {
            let own = parts.items.iter().find_map(|part| match part {
                RefOr::Ref(reference) => reference.ref_location.rsplit('/').next(),
                RefOr::T(_) => None,
            })?;
            let tagged = parts.items.iter().find_map(|part| match part {
                RefOr::T(Schema::Object(object)) => Some(object),
                _ => None,
            })?;
            let RefOr::T(Schema::Object(object)) = schemas.get_mut(own)? else { return None };
            object.properties.extend(tagged.properties.clone());
            object.required.extend(tagged.required.clone());
            Some((tag(tagged)?, own.to_owned()))
        }
        _ => None,
    }
}

fn tag(object: &Object) -> Option<String> {
    let RefOr::T(Schema::Object(field)) = object.properties.get("type")? else { return None };
    field.enum_values.as_ref()?.first().and_then(Value::as_str).map(str::to_owned)
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}
