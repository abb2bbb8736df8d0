//! Our own JSON: only what was read counts, names and meanings are made anew.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::token::hex;
use super::{Place, Reader};
use crate::Address;
use crate::decode::SCHEMA;

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "schema", deserialize_with = "known")]
    _schema: (),
    cpus: Vec<Cpu>,
}

#[derive(Deserialize)]
struct Cpu {
    id: u32,
    registers: Vec<Register>,
}

/// The parts of a register that count, checked against each other.
#[derive(Deserialize)]
#[serde(try_from = "Text")]
struct Register {
    address: Address,
    value: Option<u64>,
}

#[derive(Deserialize)]
struct Text {
    address: String,
    raw: Option<String>,
}

impl TryFrom<Text> for Register {
    type Error = String;

    fn try_from(text: Text) -> Result<Self, String> {
        register(&text.address, text.raw.as_deref())
    }
}

fn register(address: &str, raw: Option<&str>) -> Result<Register, String> {
    let address =
        Address::parse(address).ok_or_else(|| format!("`{address}` is no address of a register"))?;
    let digits = address.width() as usize / 4;
    Ok(Register { address, value: raw.map(|raw| hex(raw, digits)).transpose()? })
}

fn known<'de, D: Deserializer<'de>>(from: D) -> Result<(), D::Error> {
    let schema = String::deserialize(from)?;
    match schema == SCHEMA {
        true => Ok(()),
        false => Err(D::Error::custom(format_args!("the schema is {schema} instead of {SCHEMA}"))),
    }
}

/// Reads a document; of one that is broken, what makes sense by itself.
///
/// `above` lines come before it.
pub fn parse(text: &str, above: usize, reader: &mut Reader) {
    match serde_json::from_str::<Document>(text) {
        Ok(document) => read(document, reader),
        Err(error) => {
            let place = Place { line: above + error.line().max(1), column: error.column().max(1) };
            reader.complain(place, message(&error));
            salvage(text, reader);
        }
    }
}

/// serde's message, which ends with the place that we tell ourselves.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.into())
}

fn read(document: Document, reader: &mut Reader) {
    for Cpu { id, registers } in document.cpus {
        reader.cpu(id);
        for Register { address, value } in registers {
            reader.keep(1, id, address, value, || Place { line: 1, column: 1 });
        }
    }
}

/// Looks for `"id": N`, `"address": "…"` and `"raw": "…"` in what does not parse as a whole, which was said already.
fn salvage(text: &str, reader: &mut Reader) {
    let (mut cpu, mut address) = (0, None);
    let mut parts = text.split('"').skip(1);
    while let (Some(key), Some(after)) = (parts.next(), parts.next()) {
        let plain = after.trim_start_matches([':', ' ', '\n', '\t']);
        let quoted = plain.is_empty().then(|| string(parts.clone())).flatten();
        match key {
            "id" => cpu = number(plain).unwrap_or(cpu),
            "address" => address = quoted,
            "raw" if quoted.is_some() || plain.starts_with("null") => {
                if let Some(Ok(found)) = address.take().map(|address| register(address, quoted)) {
                    reader.keep(1, cpu, found.address, found.value, || Place { line: 1, column: 1 });
                }
            }
            _ => {}
        }
    }
}

/// The next string, if its closing quote is there.
fn string<'a>(mut parts: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let string = parts.next()?;
    parts.next().map(|_| string)
}

fn number(text: &str) -> Option<u32> {
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
